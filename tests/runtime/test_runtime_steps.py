from runtime.steps import step_folder, step_folders, step_of


def test_steps_come_in_order_of_their_numbers_and_other_names_are_left_out(tmp_path):
    for step in (999_999, 2, 1_000_000, 10):
        step_folder(tmp_path, step).mkdir()
    for name in ("step-000002-good", "step-12", "step-0000012", "step-", "best", "step-00000x"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000003").touch()
    (tmp_path / "step-000004").symlink_to("step-000002")
    names = [path.name for path in step_folders(tmp_path)]
    assert names == ["step-000002", "step-000004", "step-000010", "step-999999", "step-1000000"]
    assert step_of(tmp_path / "step-1000000") == 1_000_000 and step_of(tmp_path / "step-000002-good") is None
