from scalear.evaluation.compared import markdown, on_front


def test_the_front_is_what_nothing_beats():
    points = [(4, 5.0), (4, 4.0), (8, 4.0), (8, 3.0), (8, 3.0), (24, 3.5), (2, 9.0)]
    assert on_front(points) == [False, True, False, True, True, False, True]
    assert on_front([(1.0, 2.0, 3.0), (1.0, 2.0, 2.5), (0.5, 9.0, 9.0)]) == [False, True, True]


def test_tables_are_aligned():
    assert markdown([["a", "bb"], ["ccc", ""]]) == "| a   | bb |\n| --- | -- |\n| ccc |    |"
