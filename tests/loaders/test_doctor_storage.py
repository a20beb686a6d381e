"""softshard doctor: what it says of a data set, in a folder, behind a URL, in a bucket."""

from softshard.loaders.doctor import format_report
from softshard.loaders.doctor_storage import check_data_set


def states(findings):
    return [finding.state for finding in findings]


def test_a_data_set_behind_a_url_is_reached_and_its_password_is_not_named(packed, serve_spoiled):
    url, _ = serve_spoiled(packed)
    found = check_data_set(url)
    assert states(found) == ["fine"] * 4
    text = format_report({"data set": found})
    assert "105 samples of 9 classes in 9 shards" in text
    assert "secret" not in text


def test_a_server_without_ranges_is_wrong(packed, serve_spoiled):
    def whole(name, first, answer):
        return (packed / name).read_bytes()

    url, _ = serve_spoiled(packed, whole)
    found = {one.name: one for one in check_data_set(url)}
    assert found["ranges"].state == "wrong"


def test_a_shard_that_is_cut_is_wrong_and_verify_is_named(packed, serve_spoiled):
    url, _ = serve_spoiled(
        packed, lambda name, first, answer: answer[:100] if name.endswith(".tar") else answer
    )
    found = check_data_set(url)[-1]
    assert found.state == "wrong"
    assert "softshard verify" in found.fix
    assert "secret" not in found.fix


def test_storage_that_is_away_is_wrong():
    (found,) = check_data_set("http://ann:secret@127.0.0.1:1/train")
    assert found.state == "wrong"
    assert "secret" not in found.found + found.fix


def test_folders_and_protocols_that_are_no_data_set_are_wrong(tmp_path, packed):
    assert states(check_data_set(str(packed))) == ["fine"]
    assert states(check_data_set(str(tmp_path))) == ["wrong"]
    assert states(check_data_set("nothing://x/y")) == ["wrong"]


def test_a_bucket_is_reached(packed, bucket, s3_bucket):
    assert states(check_data_set(bucket(packed))) == ["fine"] * 4
    (found,) = check_data_set(f"{s3_bucket}/nothing")
    assert found.state == "wrong"
