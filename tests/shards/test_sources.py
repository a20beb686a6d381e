import os

import pytest

from softshard.shards import DataError, UsageError
from softshard.shards.sources import list_image_folder

HINT = "Give the folder whose subfolders are the classes: SRC/<class>/<image>.jpg"


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_class_folders_are_listed_by_code_point_with_what_lies_below_them(tmp_path):
    touch(tmp_path, "b/2.jpg", "b/10.JPEG", "B/x/1.png", "B/a.webp", "é/a.gif", "empty/.keep")
    listing = list_image_folder(tmp_path)
    assert [(folder.name, folder.files) for folder in listing.folders] == [
        ("B", ("a.webp", "x/1.png")),
        ("b", ("10.JPEG", "2.jpg")),
        ("empty", ()),
        ("é", ("a.gif",)),
    ]
    assert (listing.num_files, listing.ignored, listing.validation) == (5, (), ())


def test_hidden_files_are_left_out_and_others_reported(tmp_path):
    touch(
        tmp_path,
        "a/1.jpg",
        "a/notes.txt",
        "a/.DS_Store",
        ".git/x.jpg",
        "README.md",
        "a/x/list.csv",
        "a/noending",
    )
    listing = list_image_folder(tmp_path)
    assert listing.num_files == 1
    assert listing.ignored == ("README.md", "a/noending", "a/notes.txt", "a/x/list.csv")


def test_no_file_is_opened(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.jpg", "a/2.jpg")

    def refuse(*_, **__):
        raise AssertionError("opened")

    monkeypatch.setattr("builtins.open", refuse)
    assert list_image_folder(tmp_path).num_files == 2


def test_a_folder_of_train_and_val_is_split_already(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", ".cache/x")
    listing = list_image_folder(tmp_path)
    assert [(folder.name, folder.path) for folder in listing.folders] == [("a", "train/a"), ("b", "train/b")]
    assert [(folder.path, folder.files) for folder in listing.validation] == [("val/a", ("2.jpg",))]


def test_train_and_val_beside_another_folder_are_classes(tmp_path):
    touch(tmp_path, "train/1.jpg", "val/1.jpg", "bus/1.jpg")
    assert [folder.name for folder in list_image_folder(tmp_path).folders] == ["bus", "train", "val"]


def test_files_beside_train_and_val_are_reported_and_another_folder_is_refused(tmp_path):
    touch(tmp_path, "train/dog/1.jpg", "val/dog/2.jpg", "synsets.csv")
    listing = list_image_folder(tmp_path)
    assert [folder.path for folder in (*listing.folders, *listing.validation)] == ["train/dog", "val/dog"]
    assert listing.ignored == ("synsets.csv",)
    touch(tmp_path, "test/1.jpg")
    with pytest.raises(DataError, match=r"expected train and val alone, .* found \['test'\] beside train"):
        list_image_folder(tmp_path)


def test_a_missing_folder_is_a_wrong_call(tmp_path):
    with pytest.raises(UsageError) as caught:
        list_image_folder(tmp_path / "nowhere")
    assert (
        str(caught.value)
        == f"{tmp_path / 'nowhere'}: expected a file or folder, found nothing; is the path right?"
    )


def test_a_file_is_a_wrong_call(tmp_path):
    touch(tmp_path, "a.tar")
    with pytest.raises(UsageError, match=r"expected a folder of class folders, found a file$"):
        list_image_folder(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "expected class folders, found an empty folder"),
        ((".hidden/a.jpg",), "expected class folders, found an empty folder"),
        (("1.jpg", "2.jpg"), "expected class folders, found 2 files"),
        (("a/notes.txt", "b/.keep"), "expected images, found none in 2 class folders"),
    ],
)
def test_a_folder_without_images_says_what_was_found(tmp_path, names, message):
    touch(tmp_path, *names)
    with pytest.raises(DataError) as caught:
        list_image_folder(tmp_path)
    assert str(caught.value) == f"{tmp_path}: {message}. {HINT}"


def test_names_that_are_not_utf_8_are_listed(tmp_path):
    folder = os.fsencode(tmp_path / "a")
    os.mkdir(folder)
    open(folder + b"/caf\xe9.jpg", "wb").close()
    assert list_image_folder(tmp_path).folders[0].files == ("caf\udce9.jpg",)


def test_class_folders_that_hold_only_folders_are_doubted(tmp_path):
    touch(tmp_path, "photos/dog/1.jpg", "photos/cat/2.jpg")
    with pytest.warns(UserWarning, match="every class folder \\(photos\\) holds several folders"):
        list_image_folder(tmp_path)
