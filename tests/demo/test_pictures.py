import pytest

from vlm_guard.demo.pictures import Picture, PictureBrowser, open_pictures


def test_browsing_goes_round(pictures):
    ids = pictures.ids
    first = pictures.first()
    assert (first.image_id, first.place) == (ids[0], 1)
    assert pictures.beside(first, 1).image_id == ids[1]
    assert pictures.beside(first, -1).image_id == ids[-1]
    assert pictures.beside(pictures.picture(ids[-1]), 1).image_id == ids[0]
    assert pictures.any().image_id in ids


def test_a_sent_picture_leads_back_to_the_first(pictures):
    sent = Picture(image=pictures.first().image, title="Your picture")
    assert pictures.beside(sent, 1).image_id == pictures.ids[0]
    assert "not known" in sent.alt_text and pictures.questions(sent) == []


def test_pictures_are_found_by_id_or_file_name(pictures):
    number = pictures.ids[3]
    assert pictures.by_text(f" {number} ").image_id == number
    assert pictures.by_text(f"{number:012d}.png").image_id == number


@pytest.mark.parametrize("text", ["", "  ", "987654", "../../etc/passwd", "dog"])
def test_wrong_ids_are_explained(pictures, text):
    with pytest.raises(ValueError, match=r"image id|no image|names no image"):
        pictures.by_text(text)


def test_pictures_know_what_is_in_them(pictures):
    picture = pictures.first()
    assert picture.objects == tuple(pictures.data.objects[picture.image_id])
    assert picture.objects[0] in picture.alt_text


def test_questions_are_half_about_what_is_there(pictures):
    for number in pictures.ids:
        picture = pictures.picture(number)
        for question in pictures.questions(picture):
            assert question.image_id == number
            assert question.label == ("yes" if question.object in picture.objects else "no")
        assert pictures.questions(picture) or not picture.objects


def test_an_unreadable_file_is_named_without_its_folder(scenes_folder, tmp_path):
    import shutil

    folder = shutil.copytree(scenes_folder, tmp_path / "copy")
    browser = open_pictures(f"coco:{folder}")
    path = browser.data.images[browser.ids[2]]
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=path.name) as raised:
        browser.picture(browser.ids[2])
    assert str(tmp_path) not in str(raised.value)


def test_unknown_data_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_pictures(str(tmp_path / "missing"))


def test_any_prepared_data_can_be_browsed(pictures):
    assert isinstance(open_pictures(pictures.data), PictureBrowser)
