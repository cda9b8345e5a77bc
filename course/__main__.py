"""Write the method yourself, and be told what is right.

    python -m course --new mine.py         writes the file that is to be filled in
    python -m course mine.py               says what is right in it, and what is wrong and why
    python -m course mine.py --train       trains the repository's code and yours, side by side

The exit status is 0 where all is right, 1 where it is not, and 2 where the file cannot be used.
"""

import argparse
import os
import sys
import textwrap
from pathlib import Path

import data
from course import check, train_mine
from course.mistakes import ANSWERS
from data import InputError

TEMPLATE = Path(__file__).with_name("template.py")


def write_template(path):
    """Raises InputError where there is a file, so that nobody's work is lost."""
    if os.path.lexists(path):
        raise InputError(f"{path} is there already, and is left as it is; choose another name")
    data.write_files({Path(path): TEMPLATE.read_bytes()})
    print(data.printable(f"Wrote {path}. Fill in its functions in any editor, in any order, and "
                         f"have them checked as often as you like: python -m course {path}"))


def report(path):
    """Prints what is right in a student's file -> its module, or None while not all is right."""
    module, count = check.load(path), {"right": 0, "wrong": 0, "not yet": 0}
    for name in ANSWERS:
        verdict, sentence = check.check(module, name, path)
        count[verdict] += 1
        print(f"{name}: {verdict}")
        if sentence:
            print(textwrap.fill(sentence, 96, initial_indent="    ", subsequent_indent="    "))
    print("\nOf {} functions {right} are right, {wrong} wrong, and {not yet} still to be written."
          .format(len(ANSWERS), **count))
    return module if count["right"] == len(ANSWERS) else None


def main():
    parser = argparse.ArgumentParser(
        prog="python -m course", allow_abbrev=False,
        description="Checks the functions of a file that --new has written and you have filled in.")
    parser.add_argument("file", metavar="FILE", help="Name your file, such as mine.py.")
    to_do = parser.add_mutually_exclusive_group()
    to_do.add_argument("--new", action="store_true", help="Write FILE, to be filled in.")
    to_do.add_argument("--train", action="store_true",
                       help="If all is right, train with it, and compare with our code.")
    options = parser.parse_args()
    good = True
    with data.errors_in_one_sentence("course"):
        if options.new:
            write_template(options.file)
        else:
            module = report(options.file)
            good = module is not None
        if options.train and good:
            good = train_mine.compare(module)
        elif options.train:
            print("--train can use your code as soon as all of them are right.")
        elif good and not options.new:
            print(data.printable(f"Now train with it: python -m course {options.file} --train"))
    sys.exit(not good)


if __name__ == "__main__":
    main()
