"""The client's command line: what a trader types, and what a script reads.

    settings    contexts saved in the user's configuration; option before environment before context
    arguments   options of every command, and how numbers, symbols and ids are written
    sheets      answers as tables and sentences, and as JSON: pure
    output      where they are printed; spinners and live views
    failures    what went wrong, as a person needs it, and its exit code
    desk        one command's (or one prompt's) connection to the venue
    command     what a command is made of
    account     register, context
    orders      submit, cancel, replace, orders
    holdings    fills, positions
    market      book, engines
    health      status
    feed        feed
    prompt      trade
    main        finds the command, runs it, ends the process

It uses the client library, and `bus` for how things are written, for the feed and for the health of NATS;
never the contract itself. `simulation/matchbus.py` is the program that calls `main.main`.
"""
