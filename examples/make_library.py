"""Build the example library: the archive of Harrow Skerry, a field station that does not exist, in files that do.

    python examples/make_library.py            # writes examples/library, about fifty files of every kind
    python examples/make_library.py FOLDER

The texts are ours and lie in ``examples/sources``: some are copied as they are, some are set as PDF, DOCX, PPTX, EPUB or
as a scanned page. Tables are computed. The recordings are ours too (see sources/README.md). The photographs come out of the
scikit-image package, which ``make setup`` installs. The result is the same whenever and wherever it is built.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import sys
import time
import zipfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image

import make_pages

HERE = Path(__file__).parent
SOURCES = HERE / "sources"

# Photograph in the package, name on the card, when it was taken, where (degrees north and east) and with what.
PHOTOS = [
    ("chelsea.png", "IMG_0107.jpg", "2019-03-29 16:20:00", (57.02, -4.22), "Nikkor F3"),
    ("coffee.png", "IMG_0388.jpg", "2021-03-04 06:31:00", (57.02, -4.22), "Nikkor F3"),
    ("coins.png", "IMG_0412.jpg", "2021-05-12 14:05:00", (57.02, -4.22), "Nikkor F3"),
    ("horse.png", "IMG_0551.png", None, None, ""),
    ("grass.png", "IMG_0604.jpg", "2022-07-02 11:12:00", (57.02, -4.22), "Nikkor F3"),
    ("gravel.png", "IMG_0605.jpg", "2022-07-02 11:15:00", (57.02, -4.22), "Nikkor F3"),
    ("brick.png", "IMG_0611.jpg", "2022-07-03 09:40:00", (57.02, -4.22), "Nikkor F3"),
    ("motorcycle_left.png", "IMG_0732.jpg", "2023-06-18 13:00:00", (57.14, -4.05), "Zenit 11"),
    ("camera.png", "IMG_0760.jpg", "2023-08-20 17:45:00", (57.02, -4.22), "Zenit 11"),
    ("clock_motion.png", "IMG_0801.jpg", "2023-12-27 03:10:00", (57.02, -4.22), "Zenit 11"),
    ("moon.png", "IMG_0840.jpg", "2024-03-09 21:40:00", (57.02, -4.22), "Refractor 122/1830"),
    ("astronaut.png", "IMG_0919.jpg", "2024-08-11 12:00:00", (57.02, -4.22), "Zenit 11"),
    ("rocket.jpg", "IMG_0920.jpg", "2024-08-13 19:22:00", (57.14, -4.05), "Zenit 11"),
    ("hubble_deep_field.jpg", "poster.jpg", None, None, ""),
    ("retina.jpg", "optician.jpg", None, None, ""),
    ("ihc.png", "fern-section-stained.png", None, None, ""),
]


def build(folder: Path) -> int:
    """Write the library's files into an empty or new folder; returns how many there are."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for part in sorted((SOURCES / "as-is").iterdir()):
        shutil.copytree(part, folder / part.name)
    shutil.copytree(SOURCES / "recordings", folder / "recordings")
    _photographs(folder / "photographs")
    _tables(folder / "tables")
    text = {file.stem: file.read_text(encoding="utf-8") for file in (SOURCES / "typeset").iterdir()}
    for name in ("papers", "scans", "reports", "slides", "books"):
        (folder / name).mkdir()
    make_pages.pdf(text["telescope"], folder / "papers" / "the brass refractor.pdf", author="Tomas Berg")
    make_pages.pdf(text["puffins"], folder / "papers" / "puffins 2023.pdf", author="Ines Vale")
    make_pages.scan(text["storm-1911"]).save(folder / "scans" / "keepers journal 1911.png")
    day = time.gmtime(0)  # otherwise the file would hold the time of its making, and differ each time
    make_pages.scan(text["seeds-1934"], seed=2).save(
        folder / "scans" / "seed bill 1934.pdf", resolution=150, creationDate=day, modDate=day
    )
    make_pages.docx(text["coin-hoard"], folder / "reports" / "coin hoard.docx", author="Ines Vale")
    make_pages.docx(text["glasshouse"], folder / "reports" / "glasshouse survey.docx", author="Oluwaseun Adeyemi")
    make_pages.slides(folder / "slides" / "plan for the trustees 2025.pptx")
    chapters = [file.read_text(encoding="utf-8") for file in sorted((SOURCES / "book").iterdir())]
    make_pages.epub(
        "A Small Natural History of Harrow Skerry", "Edda Vale", chapters, folder / "books" / "natural history.epub"
    )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    _settle(files, folder)
    return len(files)


def query_picture(path: Path) -> None:
    """A photograph that is not in the library, of something that is: the motorcycle, one step to the right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(_package_photos() / "motorcycle_right.png").convert("RGB").save(path, quality=88)


def _package_photos() -> Path:
    import skimage

    return Path(skimage.__file__).parent / "data"


def _photographs(folder: Path) -> None:
    folder.mkdir()
    for source, name, taken, place, camera in PHOTOS:
        picture = Image.open(_package_photos() / source).convert("RGB")
        exif = Image.Exif()
        if taken:
            stamp = taken.replace("-", ":")
            exif[0x0110], exif[0x0132] = camera, stamp
            exif.get_ifd(0x8769)[0x9003] = stamp
        if place:
            north, east = place
            gps = exif.get_ifd(0x8825)
            gps[1], gps[2], gps[3], gps[4] = "N", _degrees(north), "W" if east < 0 else "E", _degrees(abs(east))
        if name.endswith(".png"):
            picture.save(folder / name, optimize=True)
        else:
            picture.save(folder / name, quality=88, exif=exif)


def _degrees(value: float) -> tuple[float, float, float]:
    whole, minutes = int(value), value % 1 * 60
    return float(whole), float(int(minutes)), round(minutes % 1 * 60, 2)


def _tables(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    dice = random.Random(1854)
    months = "January February March April May June July August September October November December".split()
    usual = [118, 92, 88, 61, 54, 58, 66, 84, 97, 126, 131, 134]
    with (folder / "rainfall.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["year", "month", "rain_mm", "wettest_day_mm", "remark"])
        for year in range(2019, 2025):
            for month, normal in zip(months, usual, strict=True):
                rain = round(normal * dice.uniform(0.55, 1.4), 1)
                remark = ""
                if (year, month) == (2022, "October"):
                    rain, remark = 287.4, "wettest month on record; the cistern overflowed into the battery store"
                if (year, month) == (2021, "April"):
                    rain, remark = 3.1, "driest month on record; washing forbidden"
                writer.writerow([year, month, rain, round(rain * dice.uniform(0.12, 0.3), 1), remark])
    _plants(folder / "plants.xlsx")
    moths = ["Angle shades", "Magpie moth", "Thrift clearwing", "Silver Y", "Convolvulus hawk-moth", "Garden tiger"]
    with (folder / "moth trap.jsonl").open("w", encoding="utf-8") as file:
        for night in range(24):
            when = date(2024, 6, 1) + timedelta(days=4 * night)
            caught = {name: dice.randint(1, 14) for name in dice.sample(moths, 3)}
            record: dict[str, object] = {"night": when.isoformat(), "lamp": "actinic 15 W", "caught": caught}
            if when == date(2024, 8, 24):
                record["note"] = "A death's-head hawk-moth, the first on the island. It squeaked at Ines."
            file.write(json.dumps(record) + "\n")
    _weather(folder / "weather 2024.parquet")
    trips = [
        ("2024-05-03", "Ines", "Port Aran", 52, "post, flour, two ladders"),
        ("2024-06-21", "Seun", "Gull Rock", 35, "counted shags from the water"),
        ("2024-08-10", "Tomas", "Port Aran", 48, "fetched the astronaut, who steered"),
        ("2024-12-30", "Ines", "Port Aran", 71, "doctor's appointment, heavy swell, shall not repeat"),
        ("2025-01-20", "Ines", "Port Aran", 95, "engine stopped twice, see recording"),
    ]
    lines = ["date\tskipper\tto\tminutes\tcargo", *("\t".join(map(str, trip)) for trip in trips)]
    (folder / "boat log.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _plants(path: Path) -> None:
    from openpyxl import Workbook

    book = Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = "Glasshouse"
    sheet.append(["plant", "Latin name", "came in", "from", "least temperature C", "remark"])
    for row in [
        ("Tree fern", "Alsophila spinulosa", 1904, "Yunnan, in a tea chest", 12, "oldest plant on the island"),
        ("Black Hamburgh vine", "Vitis vinifera", 1934, "Port Aran, by mail boat", -5, "holds up two ribs of the roof"),
        (
            "Night-blooming cactus",
            "Selenicereus grandiflorus",
            1972,
            "Edda Vale's aunt",
            10,
            "flowers one night a year",
        ),
        ("Lemon", "Citrus limon", 1999, "a pip in a cup of tea", 5, "eleven lemons in 2023"),
        ("Carnivorous pitcher", "Sarracenia flava", 2016, "a visitor, anonymously", -8, "fed by the kitchen's flies"),
    ]:
        sheet.append(row)
    garden = book.create_sheet("Walled garden")
    garden.append(["bed", "crop 2024", "sown", "harvest kg", "remark"])
    for row in [
        ("A", "Potatoes, Arran Chief", date(2024, 3, 30), 164, "own seed since 1934"),
        ("B", "Kale", date(2024, 5, 2), 41, "shared with caterpillars"),
        ("C", "Sea pea", date(2024, 4, 11), 2, "from the south beach"),
        ("D", "Broad beans", date(2023, 11, 9), 38, "blown flat twice, stood up twice"),
        ("E", "Sunflowers", date(2024, 5, 20), 0, "for morale"),
    ]:
        garden.append(row)
    book.properties.created = datetime(2024, 11, 1)
    book.properties.creator = "Oluwaseun Adeyemi"
    book.save(path)


def _weather(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(27)
    day = np.arange(366)
    air = 8.6 - 6.1 * np.cos((day - 30) / 366 * 2 * np.pi) + rng.normal(0, 1.6, 366)
    wind = np.clip(rng.gamma(4, 4.2, 366) + 5 * np.cos(day / 366 * 2 * np.pi), 1, None)
    wind[361] = 71.0  # 27 December: the strongest mean wind of the year
    columns = {
        "day": pa.array([date(2024, 1, 1) + timedelta(days=int(n)) for n in day]),
        "air_c": pa.array(np.round(air, 1)),
        "sea_c": pa.array(np.round(9.8 - 3.2 * np.cos((day - 60) / 366 * 2 * np.pi), 1)),
        "wind_knots": pa.array(np.round(wind, 0)),
        "pressure_hpa": pa.array(np.round(1011 + rng.normal(0, 11, 366) - wind / 4, 1)),
    }
    pq.write_table(pa.table(columns), path)


def _settle(files: list[Path], folder: Path) -> None:
    """Give every file the date that belongs to it, so that ``--since`` has something to find."""
    taken = {name: stamp for _, name, stamp, *_ in PHOTOS if stamp}
    for number, file in enumerate(files):
        when = datetime(2021, 1, 1, 12, tzinfo=UTC) + timedelta(days=31 * number)
        if file.name in taken:
            when = datetime.fromisoformat(taken[file.name]).replace(tzinfo=UTC)
        elif file.parent == folder / "recordings":
            when = datetime.fromisoformat(file.name[:10]).replace(tzinfo=UTC)
        os.utime(file, (when.timestamp(), when.timestamp()))
        if file.suffix in (".docx", ".pptx", ".xlsx"):
            _same_every_time(file)
            os.utime(file, (when.timestamp(), when.timestamp()))


def _same_every_time(file: Path) -> None:
    """Rewrite an Office file's archive with fixed times, so that its bytes, and with them its identity, never change."""
    with zipfile.ZipFile(file) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            if name == "docProps/core.xml":
                data = re.sub(rb"(<dcterms:modified[^>]*>)[^<]*", rb"\g<1>2024-11-01T12:00:00Z", data)
            archive.writestr(zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)


def main() -> None:
    """Build into the folder named on the command line, by default ``examples/library``."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "library"
    print(f"{build(folder)} files in {folder}")


if __name__ == "__main__":
    main()
