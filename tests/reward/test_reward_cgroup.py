import os
from pathlib import Path

from reward.code.cgroup import Group, Hierarchy, _candidates, _remove_left_over


def test_where_groups_can_be_made():
    version_1 = (
        "9:cpuset:/\n5:cpuacct,cpu:/job\n4:memory:/job/step\n0::/x\n",
        "30 20 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "31 20 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
        "23 20 0:29 / / rw - ext4 /dev/vda rw\n",
    )
    top = Path("/sys/fs/cgroup")
    assert _candidates(*version_1) == [Hierarchy(top / "memory" / "job" / "step", top / "cpu,cpuacct" / "job", 1)]
    inside_a_container = "30 20 0:28 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    inside_a_container += "31 20 0:28 /docker/abc /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n"
    member = "4:memory:/docker/abc\n5:cpuacct:/docker/abc/x\n"
    assert _candidates(member, inside_a_container) == [Hierarchy(top / "memory", top / "cpuacct" / "x", 1)]
    assert _candidates("0::/user.slice\n", "") == []


def test_version_2_needs_a_folder_that_hands_down_the_memory_controller(tmp_path):
    own = tmp_path / "user.slice" / "session.scope"
    own.mkdir(parents=True)
    for folder, controllers in ((tmp_path, "cpu memory pids"), (tmp_path / "user.slice", "memory"), (own, "")):
        (folder / "cgroup.subtree_control").write_text(controllers)
    mounts = f"35 24 0:30 / {tmp_path} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
    assert _candidates("0::/user.slice/session.scope\n", mounts) == [
        Hierarchy(tmp_path / "user.slice", tmp_path / "user.slice", 2)
    ]
    (tmp_path / "user.slice" / "cgroup.subtree_control").write_text("pids")
    assert _candidates("0::/user.slice/session.scope\n", mounts) == [Hierarchy(tmp_path, tmp_path, 2)]


def test_counts_of_version_2(tmp_path):
    group = Group(Hierarchy(tmp_path, tmp_path, 2), 0)
    group.memory.mkdir()

    def counts(usec, oom, oom_kill):
        (group.memory / "cpu.stat").write_text(f"usage_usec {usec}\nuser_usec 1\n")
        (group.memory / "memory.events").write_text(f"low 0\nhigh 0\nmax 9\noom {oom}\noom_kill {oom_kill}\n")

    counts(1_000_000, 1, 1)
    assert group.prepare(1 << 28) == [str(group.memory / "cgroup.procs")]
    assert (group.memory / "memory.max").read_text() == str(1 << 28)
    assert (group.memory / "memory.swap.max").read_text() == "0"
    assert (group.seconds(), group.lost(), group.ran_out()) == (0.0, False, False)
    counts(3_500_000, 1, 2)
    assert (group.seconds(), group.lost(), group.ran_out()) == (2.5, True, False)
    counts(3_500_000, 2, 2)
    assert group.ran_out()


def test_groups_of_runs_that_have_ended_are_removed(tmp_path):
    names = [f"reward-{os.getpid()}-0", "reward-999999999-3", "others"]
    for name in names:
        (tmp_path / name).mkdir()
    _remove_left_over(Hierarchy(tmp_path, tmp_path, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["others", names[0]]
