"""The whole path of a search, over a store in memory."""

from __future__ import annotations

import numpy as np
import pytest

from deepwell.errors import MissingModelError
from deepwell.library.encoders.conse import Conse
from deepwell.library.protocols import SoundTag, Transcript, Utterance
from deepwell.library.records import Filters, Label, Query
from deepwell.testing import FakeSenses, HashImageEncoder

ANIMALS = ["a cat sleeps on the warm mat", "a dog barks at the postman", "the horse runs over a green field"]
ENGINES = ["the diesel engine needs oil", "a steam turbine drives the ship", "the rocket burns liquid oxygen"]


def fill(store, encoder, texts=(*ANIMALS, *ENGINES)):
    for number, text in enumerate(texts):
        store.put(number, [text])
    store.encode(encoder)


@pytest.mark.parametrize("warm", [False, True])
def test_finds_by_words_and_meaning_and_says_why(store, encoder, searcher, warm):
    fill(store, encoder)
    search = searcher()
    if warm:
        search.warm()
    results = search.search(Query(text="where does the cat sleep"))
    assert results[0].text == ANIMALS[0]
    assert dict(results[0].why) == pytest.approx({"words": 1.0, "meaning": 1.0}, abs=0.1)
    assert 0.9 < results[0].score <= 1.0
    assert [h.score for h in results] == sorted((h.score for h in results), reverse=True)
    assert results.notices == ()
    assert store.matched == (0 if warm else 1)


def test_cold_and_warm_agree(store, encoder, searcher):
    rng = np.random.default_rng(0)
    vocabulary = [f"word{k}" for k in range(300)]
    common = rng.zipf(1.4, size=(400, 40)) % 300
    fill(store, encoder, [" ".join(vocabulary[w] for w in row) for row in common])
    cold, warm = searcher(), searcher()
    warm.warm()
    agreed = []
    for _ in range(20):
        cold._resident._searches = 0  # a process that answers once
        query = Query(text=" ".join(vocabulary[w] for w in rng.integers(3, 300, 5)))
        a, b = [{h.passage_id for h in s.search(query)} for s in (cold, warm)]
        agreed.append(len(a & b) / 10)
    assert np.mean(agreed) > 0.8


@pytest.mark.parametrize("query", ["ERR_CONN_4012", "why does ERR_CONN_4012 happen", '"liquid oxygen"', "zyxgar"])
def test_an_exact_name_comes_first_though_vectors_disagree(store, encoder, searcher, query):
    fill(store, encoder, [f"common words number{k} about oil and err conn" for k in range(60)])
    target = store.put(99, ["ERR_CONN_4012 zyxgar while liquid oxygen was pumped, see the other nine pages"])[0]
    vector = encoder.encode([query], query=True)[0]
    for number, vectors in enumerate(store.space_vectors["text"].items()):
        store.space_vectors["text"][vectors[0]] = vector if number < 3 else vectors[1]
    store.space_vectors["text"][target] = -vector
    for make in (searcher(), searcher()):
        assert make.search(Query(text=query))[0].passage_id == target
        make.warm()
        assert make.search(Query(text=query))[0].passage_id == target


@pytest.mark.parametrize(
    ("query", "expected"),
    [("高速铁路", "高速铁路的安全检查"), ("東京の天気", "東京の天気は晴れです"), ("Müller", "Herr Muller kommt")],
)
def test_other_scripts(store, encoder, searcher, query, expected):
    fill(
        store,
        encoder,
        ["高速铁路的安全检查", "东京大学的图书馆", "東京の天気は晴れです", "Herr Muller kommt", "plain words"],
    )
    search = searcher(text_encoder=None)
    search.warm()
    assert search.search(Query(text=query))[0].text == expected


def test_without_encoder_words_answer_and_the_command_is_named(store, encoder, searcher):
    fill(store, encoder)

    def missing():
        raise MissingModelError("no text encoder", hint="run: deepwell models pull starter")

    results = searcher(text_encoder=missing).search(Query(text="diesel engine"))
    assert results[0].text == ENGINES[0]
    assert set(results[0].why) == {"words"}
    assert results.notices == ("words only: no text encoder; run: deepwell models pull starter",)


def test_incomplete_vectors_are_told_and_words_still_find(store, encoder, searcher):
    fill(store, encoder)
    late = store.put(50, ["a brand new diesel generator"])[0]
    results = searcher().search(Query(text="diesel generator"))
    assert results[0].passage_id == late
    assert any("1 of 7 passages" in notice for notice in results.notices)


def test_nothing_found_is_empty(store, encoder, searcher):
    assert len(searcher().search(Query(text="anything"))) == 0
    fill(store, encoder)
    assert len(searcher(text_encoder=None).search(Query(text="quasar"))) == 0


@pytest.mark.parametrize("warm", [False, True])
def test_it_says_whether_any_of_the_words_stands_here(store, encoder, searcher, warm):
    fill(store, encoder)
    store.put(70, ["a cat in a book"], path="/books/cat.epub", kind="book")
    store.encode(encoder)
    search = searcher()
    if warm:
        search.warm()
    assert search.search(Query(text="a cat", filters=Filters(kinds=("book",)))).notices == ()
    strange = search.search(Query(text="quasar redshift"))
    assert strange.notices == ("none of the words stands in the library; these are the nearest in meaning",)
    assert not any("words" in hit.why for hit in strange)
    elsewhere = search.search(Query(text="diesel", filters=Filters(kinds=("book",))))
    assert "part of the library" in elsewhere.notices[0]


def test_filters_hold_for_every_arm(store, encoder, searcher):
    fill(store, encoder)
    store.put(70, ["a cat in a book"], path="/books/cat.epub", kind="book")
    store.encode(encoder)
    for warm in (False, True):
        search = searcher()
        if warm:
            search.warm()
        results = search.search(Query(text="cat", filters=Filters(kinds=("book",))))
        assert [h.kind for h in results] == ["book"]
        assert len(search.search(Query(text="cat", filters=Filters(kinds=("email",))))) == 0


def test_a_long_document_does_not_crowd_out_others(store, encoder, searcher):
    store.put(1, [f"the cat sat on mat {k}" for k in range(30)])
    store.put(2, ["one cat elsewhere with many other things around it"])
    store.encode(encoder)
    results = searcher().search(Query(text="cat mat", limit=5))
    assert "d2" in [h.document_id for h in results]
    only = searcher().search(Query(text="cat mat", limit=5, filters=Filters(path="/f/1.txt")))
    assert [h.document_id for h in only] == ["d1"] * 5


def test_the_index_follows_the_library(store, encoder, searcher):
    fill(store, encoder)
    search = searcher()
    search.warm()
    store.put(60, ["a fresh zeppelin"])
    store.remove(0)
    store.encode(encoder)
    search.warm()
    assert search.search(Query(text="zeppelin"))[0].text == "a fresh zeppelin"
    assert ANIMALS[0] not in [h.text for h in search.search(Query(text="cat sleeps warm mat"))]


def test_a_stale_index_is_not_used(store, encoder, searcher):
    fill(store, encoder)
    search = searcher()
    search.warm()
    store.put(61, ["a fresh zeppelin"])
    store.remove(0)
    texts = [h.text for h in search.search(Query(text="zeppelin cat"))]
    assert texts[0] == "a fresh zeppelin"
    assert ANIMALS[0] not in texts


def test_picture_to_picture(store, encoder, searcher, tmp_path):
    images = HashImageEncoder()
    files = []
    for k in range(5):
        files.append(tmp_path / f"{k}.png")
        files[-1].write_bytes(bytes([k]) * 10)
    ids = [store.put(k, [f"picture {k}"], kind="image", modality="image")[0] for k in range(5)]
    store.space_vectors["image"] = dict(zip(ids, images.encode_images(files), strict=True))
    results = searcher(text_encoder=None, image_encoder=lambda: images).search(Query(image=files[3]))
    assert results[0].passage_id == ids[3]
    assert results[0].why == {"likeness": 1.0}


def test_a_recording_finds_what_is_said_and_heard(store, encoder, searcher, tmp_path):
    fill(store, encoder)
    senses = FakeSenses(transcript=Transcript((Utterance("the steam turbine", 0, 1, ()),), "en", 1.0), heard=())
    results = searcher(senses=senses).search(Query(audio=tmp_path / "a.wav"))
    assert results[0].text == ENGINES[1]
    mute = FakeSenses()
    with pytest.raises(MissingModelError):
        searcher(senses=mute).search(Query(audio=tmp_path / "a.wav"))


def test_a_recording_finds_recordings_that_sound_alike(store, encoder, searcher, tmp_path):
    conse = Conse(encoder)
    sounds = [
        (Label("rain", 0.8), Label("thunder", 0.3)),
        (Label("dog", 0.9), Label("bark", 0.8)),
        (Label("bell", 1.0),),
    ]
    ids = [store.put(k, [f"sound {k}"], kind="audio", modality="audio")[0] for k in range(3)]
    store.space_vectors["text"] = dict(zip(ids, conse.encode_labels(sounds), strict=True))
    heard = (SoundTag(0, 5, (Label("bark", 0.6),)), SoundTag(5, 5.1, (Label("bell", 0.9),)))
    options = {"senses": FakeSenses(heard=heard), "labels": lambda rows, _: conse.encode_labels(rows)}
    results = searcher(**options).search(Query(audio=tmp_path / "a.wav"))
    assert [hit.passage_id for hit in results[:2]] == [ids[1], ids[2]]  # five seconds of barking, a moment of a bell
    assert set(results[0].why) == {"sound"}


@pytest.mark.parametrize("warm", [False, True])
def test_a_library_of_pictures_alone_is_searched_by_words(store, encoder, searcher, warm):
    ids = [store.put(k, [f"dog, animal {k}"], kind="image", modality="image")[0] for k in range(3)]
    store.space_vectors["text"] = dict(zip(ids, Conse(encoder).encode_labels([[Label("dog", 1.0)]] * 3), strict=True))
    search = searcher()
    if warm:
        search.warm()
    assert len(search.search(Query(text="a dog in the water"))) == 3
    assert len(search.search(Query(text="a dog in the water", filters=Filters(kinds=("image",))))) == 3


def test_pictures_neither_flood_nor_vanish(store, searcher):
    # Pictures' vectors lie in a narrow cone where every cosine is high; only a picture that stands out may win.
    rng = np.random.default_rng(1)
    query = np.eye(1, 64, dtype=np.float32)[0]

    class Fixed:
        name, fingerprint, dim = "fixed", "f", 64

        def encode(self, texts, *, query=False):
            return np.repeat(np.eye(1, 64, dtype=np.float32), len(texts), axis=0)

    def near(cosine, rows):
        rest = rng.standard_normal((rows, 64)).astype(np.float32)
        rest[:, 0] = 0
        rest /= np.linalg.norm(rest, axis=1, keepdims=True)
        cosine = np.broadcast_to(np.asarray(cosine, np.float32), rows)[:, None]
        return cosine * query + np.sqrt(1 - cosine**2) * rest

    texts = store.put(1, [f"x{k}" for k in range(200)])
    pictures = [store.put(1000 + k, [f"y{k}"], kind="image", modality="image")[0] for k in range(200)]
    sentences = near(np.r_[0.6, 0.55, rng.normal(0.05, 0.08, 198)], 200)
    store.space_vectors["text"] = dict(zip(texts, sentences, strict=True))
    store.space_vectors["text"].update(zip(pictures, near(np.r_[0.68, rng.normal(0.5, 0.03, 199)], 200), strict=True))
    found = [h.passage_id for h in searcher(text_encoder=Fixed, feedback=False).search(Query(text="qq", limit=3))]
    assert set(found) == {texts[0], texts[1], pictures[0]}


def test_many_threads_get_the_same_answer(store, encoder, searcher):
    from concurrent.futures import ThreadPoolExecutor

    fill(store, encoder)
    search = searcher()
    query = Query(text="steam engine")
    expected = [h.passage_id for h in search.search(query)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: [h.passage_id for h in search.search(query)], range(40)))
    assert all(answer == expected for answer in answers)


def test_confidence_tells_a_hit_from_the_least_bad(store, encoder, searcher):
    fill(store, encoder)
    search = searcher()
    search.warm()
    good = search.confidence(search.search(Query(text="the diesel engine needs oil")))
    poor_results = search.search(Query(text="quasar redshift"))
    poor = search.confidence(poor_results)
    assert good.coverage == pytest.approx(1.0)
    assert good.cosine == pytest.approx(1.0, abs=1e-5)
    assert poor.coverage == 0.0
    assert poor.cosine < 0.6
    assert any("none of the words" in notice for notice in poor_results.notices)
