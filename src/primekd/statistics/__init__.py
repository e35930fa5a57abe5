"""What graded answers say: intervals, paired tests, families of tests, seeds, power, agreement with people. Every
sentence that says that something differs rests on a number from here."""
