"""A list of checks that prints what became of each, for people and for quorate-drivers.

A line is `ok <name>`, `skip <name> -- <why>` or `not ok <name> -- <why>`.
"""

import time
import traceback

CHECKS = []


class Skip(Exception):
    """This cannot be tried here."""


def check(name):
    """Makes a function a check. They run in the order of their definition."""

    def note(function):
        CHECKS.append((name, function))
        return function

    return note


def run():
    """Runs all of them; how many failed."""
    failed = 0
    for name, function in CHECKS:
        try:
            function()
            print(f"ok {name}", flush=True)
        except Skip as why:
            print(f"skip {name} -- {why}", flush=True)
        except Exception as error:
            failed += 1
            frames = traceback.extract_tb(error.__traceback__)
            lines = [f.lineno for f in frames if f.name == function.__name__]
            why = " ".join(str(error).split())
            print(f"not ok {name} -- line {lines[-1]}: {type(error).__name__}: {why}", flush=True)
    return failed


def expect(found, wanted):
    """Fails with both values."""
    if found != wanted:
        raise AssertionError(f"{found!r}, not {wanted!r}")


def refuses(error, action, *words):
    """Fails unless an action raises this error, with these words in its text."""
    try:
        action()
    except error as raised:
        missing = [word for word in words if word not in str(raised)]
        if missing:
            raise AssertionError(f"no {missing} in {str(raised)!r}")
        return
    raise AssertionError(f"was not refused with {error.__name__}")


def until(condition, what, within=30.0):
    """Waits until a condition gives something, for that."""
    end = time.monotonic() + within
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"waited {within} s in vain until {what}")
        time.sleep(0.02)
