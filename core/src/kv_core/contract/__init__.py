"""What engine authors and backend authors read: types, abstract classes, hooks, errors. Pure: no I/O, threads, clocks."""
