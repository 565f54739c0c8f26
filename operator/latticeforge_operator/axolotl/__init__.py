"""Axolotl configs → one StackedTraining, and what became of every key. Pure: no file, no clock.

    settings   what a file sets, read and checked key by key
    keys       every key that Axolotl knows, with the rule that says what becomes of it
    stack      one config per stage → manifest, notes on its fields, one report per config

A rule is a small function of a value and the other settings; it yields lines of the report, and a
line carries the fields of the StackedTraining that follow from it. Nothing else sets a field, so
the report and the manifest cannot disagree.
"""
