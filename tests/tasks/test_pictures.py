from scalear.scales import ScaleSchedule
from scalear.tasks.pictures import flexible_schedules


def test_a_picture_shows_lists_of_every_kind():
    lists = flexible_schedules(ScaleSchedule.parse("256px-10"))
    assert [schedule.num_scales for schedule in lists[:4]] == [6, 8, 10, 12]
    assert [str(schedule) for schedule in lists[4:7]] == [
        str(ScaleSchedule.parse(name)) for name in ("256px-10", "384px-11", "512px-12")
    ]
    assert [schedule.sizes[-1] for schedule in lists[7:]] == [(16, 24), (16, 32), (32, 16)]
    small = flexible_schedules(ScaleSchedule.parse("1,2,3,4,6,8"))
    assert [schedule.num_scales for schedule in small] == [3, 4, 5, 6, 6, 7, 8, 6, 6, 6]
