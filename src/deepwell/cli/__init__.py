"""The command line: one file a group of commands, each thin: parse, call the library, print.

    main.py        the list of commands (each loaded when it is used), errors to exit codes
    options.py     what commands share: which library, --json
    times.py       "2 weeks ago" to seconds
    render.py      results, answers and reports for people
    progress.py    the bar while files are read
    index.py       add, sync, remove, status
    search.py      search
    ask.py         ask
    models.py      models list, pull, path, verify, remove
    completion.py  completion bash, zsh, fish

Nothing heavy is imported until a command runs, so ``deepwell --help`` answers at once.
"""
