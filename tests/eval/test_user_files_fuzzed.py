"""Files that users bring, damaged in seeded ways, never give a traceback (thousands: `user_file_mutations` by hand)."""

from user_file_mutations import KINDS, run_many


def test_damaged_files_are_read_or_refused_in_one_line(tmp_path):
    tried, faults = run_many(tmp_path, 12 * len(KINDS), report=lambda fault: None)
    assert not faults, "\n".join(faults[:3])
    assert sum(tried.values()) == 12 * len(KINDS)
