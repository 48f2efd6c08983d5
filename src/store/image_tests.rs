//! The image in sled and in memory: a model beside them, long values, digests, and damaged files.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::image::{Image, ImageStore, MemoryStore, Point, Tally, Write, verify};
use super::page::Records;
use super::sled_image::{SledImage, guarded};
use super::sled_store::SledStore;
use super::testing::{World, point, writes};
use crate::limits::{IMAGE_CHUNK_BYTES, IMAGE_PAGE_BYTES, IMAGE_PART_ROWS};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn scan(image: &dyn Image) -> Model {
    let rows: Vec<_> = image.scan().map(Result::unwrap).collect();
    assert!(rows.is_sorted_by(|a, b| a.0 < b.0), "not in key order");
    rows.into_iter().collect()
}

fn tally(model: &Model) -> (u64, u64) {
    let mut tally = Tally::default();
    model.iter().for_each(|(key, value)| tally.add(key, value));
    (tally.records, tally.digest)
}

/// sled lets go of its file a little after the handle is dropped.
fn open_raw(dir: &Path) -> sled::Db {
    let mut tries = 0;
    loop {
        match sled::open(dir) {
            Err(error) if tries < 2_000 && error.to_string().contains("acquire lock") => tries += 1,
            result => return result.unwrap(),
        }
        std::thread::park_timeout(std::time::Duration::from_millis(10));
    }
}

/// The number of pages, and of their further chunks, after a look at all rows that sled holds: each record in the one
/// page to which it belongs, and nothing else.
fn raw_rows(dir: &Path) -> (usize, usize) {
    let (mut rows, mut expected) = (Model::new(), Model::new());
    for row in open_raw(dir).iter() {
        let (key, content) = row.unwrap();
        rows.insert(key.to_vec(), content.to_vec());
    }
    expected.insert(b"m".to_vec(), rows[&b"m"[..]].clone());
    let (mut before, mut chunks) = (None::<Vec<u8>>, 0);
    for (row, content) in rows.range(b"r".to_vec()..) {
        let (count, first) = content.split_first_chunk::<2>().unwrap();
        let mut records = first.to_vec();
        expected.insert(row.clone(), content.clone());
        for number in 1..=u16::from_be_bytes(*count) {
            let chunk = [b"c", &**row, &number.to_be_bytes()].concat();
            records.extend_from_slice(&rows[&chunk]);
            expected.insert(chunk.clone(), rows[&chunk].clone());
            chunks += 1;
        }
        let mut records = Records::new(&records).unwrap();
        assert!(records.current().is_some(), "an empty page");
        while let Some((key, _)) = records.current() {
            assert!(
                before.as_ref().is_none_or(|before| **before < *key),
                "in a page too far behind"
            );
            assert!(row == b"s" || *key <= row[1..], "in a page too far ahead");
            before = Some(key.to_vec());
            records.advance().unwrap();
        }
        // Nothing between its last record and its end is in a later page.
        before = before.max(Some(row[1..].to_vec()).filter(|_| row != b"s"));
    }
    assert!(rows == expected, "rows that belong to no page");
    (expected.len() - 1 - chunks, chunks)
}

fn write(image: &mut dyn Image, changes: &[Write], index: u64) {
    image.write(&mut changes.iter().cloned(), &point(index)).unwrap();
}

#[test]
fn values_of_all_lengths_come_back_and_shrink_and_grow_without_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let chunk = IMAGE_CHUNK_BYTES;
    // In a page by itself, with its key and its head.
    let alone = |length: usize| 8 + b"key2".len() + length;
    let full = chunk - alone(0);
    let lengths = [0, 1, full, full + 1, chunk - 1, chunk, chunk + 1, chunk + full, 2 * chunk]
        .into_iter()
        .chain([5 * chunk + 7, 1_200_000, 3 * chunk, 0, 9]);
    let mut image = SledImage::open(&path).unwrap();
    for (index, length) in (1..).zip(lengths) {
        let value: Vec<u8> = (0..length).map(|i| (i * 7 + length) as u8).collect();
        // Its neighbours begin with the same bytes, and with what could be a chunk number.
        let neighbours =
            [(b"key".to_vec(), Some(vec![1])), (b"key2\0\x01".to_vec(), Some(vec![2]))];
        write(&mut image, &[(b"key2".to_vec(), Some(value.clone()))], index);
        write(&mut image, &neighbours, index);
        assert_eq!(scan(&image)[&b"key2".to_vec()], value);
        assert_eq!(verify(&image).unwrap().records, 3);
        drop(image);
        let (pages, chunks) = raw_rows(&path);
        let bytes = alone(length);
        let further = if bytes > IMAGE_PAGE_BYTES { (bytes - 1) / chunk } else { 0 };
        assert_eq!(chunks, further, "length {length}");
        assert!(pages <= 3, "length {length}: {pages}");
        image = SledImage::open(&path).unwrap();
        assert_eq!(scan(&image)[&b"key2".to_vec()], value);
        assert_eq!(image.meta().unwrap().point, point(index));
        verify(&image).unwrap();
    }
    write(&mut image, &[(b"key2".to_vec(), Some(vec![0; 9 * chunk]))], 50);
    write(&mut image, &[(b"key2".to_vec(), None), (b"never was".to_vec(), None)], 51);
    drop(image);
    let (pages, chunks) = raw_rows(&path);
    assert!(pages <= 2 && chunks == 0, "{pages}, {chunks}");
    assert!(fs::read_dir(path.join("blobs")).unwrap().next().is_none(), "sled made a blob");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Random changes in random batches of random parts; after each one, and after reopening, the image is the model.
    #[test]
    fn the_image_is_the_model(
        batches in prop::collection::vec(
            prop::collection::btree_map(
                prop::collection::vec(0u8..4, 0..4),
                prop::option::weighted(0.7, (any::<u8>(), prop_oneof![0usize..40, 300usize..1_500, 4_000usize..13_000])),
                0..12,
            ),
            1..12,
        ),
        parts in prop::collection::vec(1usize..9, 12),
        reopen in any::<u16>(),
        reset_at in prop::option::of(0usize..12),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let mut sled = SledImage::open(&path).unwrap();
        let mut memory = MemoryStore::default().open().unwrap();
        let mut model = Model::new();
        for (number, batch) in batches.into_iter().enumerate() {
            if reset_at == Some(number) {
                sled.reset().unwrap();
                sled.set_part(parts[number]);
                memory.reset().unwrap();
                prop_assert!(sled.meta().is_none() && memory.meta().is_none());
                sled.fill(&mut model.clone().into_iter()).unwrap();
                memory.fill(&mut model.clone().into_iter()).unwrap();
                prop_assert!(sled.meta().is_none() && memory.meta().is_none());
            }
            let batch: Vec<Write> = batch
                .into_iter()
                .map(|(key, value)| (key, value.map(|(byte, length)| vec![byte; length])))
                .collect();
            for (key, value) in batch.clone() {
                match value {
                    Some(value) => model.insert(key, value),
                    None => model.remove(&key),
                };
            }
            let index = number as u64;
            sled.set_part(parts[number]);
            let meta = sled.write(&mut batch.clone().into_iter(), &point(index)).unwrap();
            prop_assert_eq!((meta.records, meta.digest), tally(&model));
            prop_assert_eq!(&meta, &memory.write(&mut batch.into_iter(), &point(index)).unwrap());
            if reopen & (1 << number) != 0 {
                drop(sled);
                sled = SledImage::open(&path).unwrap();
            }
            prop_assert_eq!(sled.meta(), Some(meta));
            prop_assert_eq!(&scan(&sled), &model);
            prop_assert_eq!(&scan(&*memory), &model);
        }
        verify(&sled).unwrap();
        drop(sled);
        raw_rows(&path);
    }
}

#[test]
fn the_digest_is_the_states() {
    let dir = tempfile::tempdir().unwrap();
    let mut image = SledImage::open(dir.path().join("image")).unwrap();
    let mut world = World::new(1);
    world.long_values = true;
    for entry in world.entries(60) {
        let meta = image.write(&mut writes(&entry).into_iter(), &entry.point).unwrap();
        world.assert_meta(&meta);
    }
    assert_eq!(world.state.digest(), {
        let meta = verify(&image).unwrap();
        (meta.digest, meta.records)
    });
}

/// A refill that a crash interrupts leaves an image without a meta, which takes no writes.
#[test]
fn half_a_refill_is_no_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let mut image = SledImage::open(&path).unwrap();
    write(&mut image, &[(b"old".to_vec(), Some(b"value".to_vec()))], 1);
    image.reset().unwrap();
    image.fill(&mut vec![(b"new".to_vec(), vec![1; 9_000])].into_iter()).unwrap();
    drop(image);

    let mut image = SledImage::open(&path).unwrap();
    assert!(image.meta().is_none());
    assert!(verify(&image).is_err());
    assert!(image.write(&mut std::iter::empty(), &point(2)).is_err());
    image.reset().unwrap();
    assert!(scan(&image).is_empty());
    write(&mut image, &[], 2);
    assert_eq!(verify(&image).unwrap().records, 0);
}

/// A long write goes to sled in parts, so that it does not keep all that it replaces until the end. Whatever a crash
/// leaves of it is the image before, the image after, or none.
#[test]
fn half_a_long_write_is_no_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let mut image = SledImage::open(&path).unwrap();
    let row =
        |number: usize, value: u8| (format!("{number:06}").into_bytes(), Some(vec![value; 2_000]));
    let part = IMAGE_PART_ROWS;
    let count = 3 * part + 9;
    let old: Vec<Write> = (0..50).map(|number| row(number, 1)).collect();
    write(&mut image, &old, 1);
    let before = (image.meta(), scan(&image));

    // Looked at while the records are asked for: before the first part is full, when it is written, and later.
    let looks = [9, part, part * 7 / 6 + 9, count - 9];
    let copy = |number: usize| dir.path().join(format!("copy-{number}"));
    let mut new = (0..count).map(|number| {
        if looks.contains(&number) {
            copy_dir(&path, &copy(number));
        }
        if number % 7 == 0 { (row(number, 0).0, None) } else { row(number, 2) }
    });
    let meta = image.write(&mut new, &point(2)).unwrap();
    let mut found = Vec::new();
    for number in looks {
        let mut copy = SledImage::open(copy(number)).unwrap();
        found.push(copy.meta().is_some());
        if copy.meta().is_some() {
            assert!((copy.meta(), scan(&copy)) == before, "copy {number} is neither");
            continue;
        }
        assert!(copy.write(&mut std::iter::empty(), &point(2)).is_err());
        copy.reset().unwrap();
        write(&mut copy, &old, 1);
        assert!((copy.meta(), scan(&copy)) == before, "copy {number} is written anew");
    }
    assert_eq!(found, [true, true, false, false]);
    for _ in 0..2 {
        assert_eq!(verify(&image).unwrap(), meta);
        assert_eq!(scan(&image).len(), count - count.div_ceil(7));
        drop(image);
        image = SledImage::open(&path).unwrap();
    }

    // Many pages that go are more than a part as well.
    let gone: Vec<Write> = (0..count).map(|number| (row(number, 0).0, None)).collect();
    let mut gone = gone.into_iter().enumerate().map(|(number, row)| {
        if number == count - 9 {
            copy_dir(&path, &copy(number + 1));
        }
        row
    });
    let meta = image.write(&mut gone, &point(3)).unwrap();
    assert!(SledImage::open(copy(count - 8)).unwrap().meta().is_none());
    assert_eq!(verify(&image).unwrap(), meta);
    assert_eq!(meta.records, 0);

    // And a few long records.
    let long: Vec<Write> =
        (0..7).map(|number| (row(number, 0).0, Some(vec![3; 500 * IMAGE_CHUNK_BYTES]))).collect();
    let mut long = long.into_iter().enumerate().map(|(number, row)| {
        if number == 6 {
            copy_dir(&path, &copy(number));
        }
        row
    });
    let meta = image.write(&mut long, &point(4)).unwrap();
    assert!(SledImage::open(copy(6)).unwrap().meta().is_none());
    assert_eq!(verify(&image).unwrap(), meta);
}

/// A crash while the old directory of a reset is away and the new one is not there, or both are.
#[test]
fn a_reset_can_be_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SledStore::new(dir.path());
    let mut image = store.open().unwrap();
    write(&mut *image, &[(b"old".to_vec(), Some(b"value".to_vec()))], 1);
    drop(image);
    let discarded = dir.path().join("image.discarded");
    fs::rename(store.dir(), &discarded).unwrap();
    let image = store.open().unwrap();
    assert!(image.meta().is_none() && !discarded.exists());
    store.confirm().unwrap();
    drop(image);

    copy_dir(&store.dir(), &discarded);
    let mut image = store.open().unwrap();
    assert!(image.meta().is_none() && !discarded.exists());
    write(&mut *image, &[(b"new".to_vec(), Some(b"value".to_vec()))], 2);
    copy_dir(&store.dir(), &discarded);
    image.reset().unwrap();
    assert!(scan(&*image).is_empty() && !discarded.exists());
}

#[test]
fn a_value_that_was_changed_behind_its_back_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let mut image = SledImage::open(&path).unwrap();
    let rows = [(b"a".to_vec(), Some(vec![7; 10_000])), (b"b".to_vec(), Some(vec![8; 3]))];
    write(&mut image, &rows, 1);
    drop(image);

    type Tamper = fn(&sled::Db);
    const B: [u8; 14] = *b"\0\0\0\0\x01\0\x03\0\0\0b\x08\x08\x08";
    let rows = |db: &sled::Db| db.iter().keys().map(Result::unwrap).collect::<Vec<_>>();
    let untouched = open_raw(&path);
    assert_eq!(rows(&untouched), [&b"cra\0\x01"[..], b"cra\0\x02", b"m", b"ra", b"s"]);
    assert_eq!(untouched.get(b"s").unwrap().unwrap(), B);
    drop(untouched);
    let tampered: [(&str, Tamper); 10] = [
        ("another value", |db| drop(db.insert(b"s", &[&B[..13], b"\x09"].concat()[..]).unwrap())),
        ("another key", |db| {
            drop(db.insert(b"s", &[&B[..10], b"c", &B[11..]].concat()[..]).unwrap());
        }),
        ("a record less", |db| drop(db.remove(b"s").unwrap())),
        ("a record more", |db| drop(db.insert(b"rb", &B).unwrap())),
        ("half a record", |db| drop(db.insert(b"s", &B[..12]).unwrap())),
        ("half a page's head", |db| drop(db.insert(b"s", &B[..1]).unwrap())),
        ("a record behind its page", |db| {
            let page = db.remove(b"s").unwrap().unwrap();
            db.insert(b"rbb", b"\0\0").unwrap();
            drop(db.insert(b"s", page).unwrap());
        }),
        ("a record before its page", |db| {
            let page = db.remove(b"s").unwrap().unwrap();
            drop(db.insert(b"raa", page).unwrap());
        }),
        ("a chunk less", |db| drop(db.remove(b"cra\0\x01").unwrap())),
        ("a shorter chunk", |db| drop(db.insert(b"cra\0\x01", b"\x07").unwrap())),
    ];
    for (what, tamper) in tampered {
        let copy = tempfile::tempdir().unwrap();
        let path = copy_dir(&path, &copy.path().join("image"));
        let db = open_raw(&path);
        tamper(&db);
        drop(db);
        assert!(verify(&SledImage::open(&path).unwrap()).is_err(), "{what}");
    }
    let copy = tempfile::tempdir().unwrap();
    let copied = copy_dir(&path, &copy.path().join("image"));
    let db = open_raw(&copied);
    let mut meta = db.get(b"m").unwrap().unwrap().to_vec();
    meta[1] ^= 1;
    db.insert(b"m", meta).unwrap();
    drop(db);
    assert!(SledImage::open(&copied).is_err(), "another index in the meta");
    verify(&SledImage::open(&path).unwrap()).unwrap();
}

/// A change over a damaged record must not make the digest right again.
#[test]
fn overwriting_a_damaged_record_does_not_hide_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let mut image = SledImage::open(&path).unwrap();
    write(&mut image, &[(b"a".to_vec(), Some(vec![1])), (b"b".to_vec(), Some(vec![2]))], 1);
    drop(image);
    let db = open_raw(&path);
    let mut page = db.get(b"s").unwrap().unwrap().to_vec();
    assert_eq!(page.pop(), Some(2));
    page.push(3);
    db.insert(b"s", page).unwrap();
    drop(db);
    let mut image = SledImage::open(&path).unwrap();
    write(&mut image, &[(b"b".to_vec(), Some(vec![4]))], 2);
    assert!(verify(&image).is_err());
}

#[test]
fn a_panic_in_sled_is_damage() {
    let texts: [fn() -> sled::Result<()>; 2] = [|| panic!("a text"), || panic!("{} text", 1)];
    for (panic, text) in texts.into_iter().zip(["a text", "1 text"]) {
        assert!(guarded(panic).unwrap_err().to_string().ends_with(text));
    }
}

#[test]
fn images_are_set_aside_and_the_oldest_go() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SledStore::new(dir.path());
    for number in 1..=4 {
        let mut image = store.open().unwrap();
        assert!(image.meta().is_none());
        image.write(&mut std::iter::empty(), &point(number)).unwrap();
        drop(image);
        assert_eq!(store.set_aside().unwrap(), format!("image.damaged-{number}"));
        assert!(!store.dir().exists());
    }
    let kept: Vec<u64> = store.damaged().unwrap().into_iter().map(|(number, _)| number).collect();
    assert_eq!(kept, [3, 4]);
}

#[test]
fn an_opening_that_ends_the_process_is_not_tried_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SledStore::new(dir.path());
    // Opened, and never confirmed.
    for _ in 0..2 {
        drop(store.open().unwrap());
    }
    let error = store.open().unwrap_err().to_string();
    assert!(error.contains("the process ended 2 times"), "{error}");
    store.set_aside().unwrap();
    drop(store.open().unwrap());
    store.confirm().unwrap();
    drop(store.open().unwrap());
}

#[test]
fn a_memory_image_can_lose_its_last_write() {
    let store = MemoryStore::default();
    let mut world = World::new(3);
    let mut image = store.clone().open().unwrap();
    let mut before = Point::default();
    for entry in world.entries(20) {
        if let Some(meta) = image.meta() {
            before = meta.point;
        }
        image.write(&mut writes(&entry).into_iter(), &entry.point).unwrap();
    }
    let newer = store.clone().open().unwrap();
    assert!(image.reset().is_err(), "the image of a process that is gone takes no writes");
    store.lose_last_write();
    let meta = verify(&*newer).unwrap();
    assert_eq!(meta.point, before);
    world.assert_meta(&meta);
    let mut newer = newer;
    newer.reset().unwrap();
    store.lose_last_write();
    assert_eq!(verify(&*newer).unwrap(), meta);
    store.interrupt_last_write();
    assert_eq!(newer.meta(), Some(meta), "nothing is left to interrupt");
    let rows = scan(&*newer).len();
    let more: Vec<Write> = (0..8).map(|number| (vec![255, number], Some(vec![1]))).collect();
    write(&mut *newer, &more, 21);
    store.interrupt_last_write();
    assert_eq!((newer.meta(), scan(&*newer).len()), (None, rows + 4));
}

pub fn copy_dir(from: &Path, to: &Path) -> std::path::PathBuf {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
    to.to_owned()
}
