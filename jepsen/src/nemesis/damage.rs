//! Files of a node that is down are damaged: bits are flipped in the log, the image or a snapshot.
//!
//! A damaged log must be refused: the node then ends with a code of its own, and gets its file back as an
//! operator would from a disk that recovered. Image and snapshots it must mend by itself. The log is struck
//! only where later frames vouch for it: what a disk loses at the very end of a log cannot be told from what
//! never reached it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use quorate::proto::v1;
use tokio::time::{Instant, sleep};

use super::{Active, Begun, Ending, Proof, Scene, Whom, frames, ids, map};
use crate::edn::Value;
use crate::random::Random;

/// The exit code of a node that refuses its log.
const LOG_DAMAGED: i32 = 4;
/// How long a node may take to refuse its files or to answer.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);
/// Bytes that are flipped at one place.
const BYTES: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    what: Files,
    whom: Whom,
    /// Places, in thousandths of the frames of the log, or of what is used of any other file.
    places: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Files {
    Log,
    Image,
    Snapshots,
}

impl Files {
    fn directory(self) -> &'static str {
        match self {
            Files::Log => "log",
            Files::Image => "image",
            Files::Snapshots => "snapshots",
        }
    }
}

impl Damage {
    pub fn draw(random: &mut Random) -> Damage {
        let what = *random.pick(&[Files::Log, Files::Image, Files::Snapshots]);
        let places = (0..1 + random.below(4)).map(|_| random.between(100..=500)).collect();
        Damage { what, whom: *random.pick(&[Whom::One, Whom::Leader]), places }
    }

    pub async fn begin(&self, scene: &mut Scene<'_>) -> io::Result<Option<Begun>> {
        let Some(&id) = self.whom.choose(scene).await.first() else { return Ok(None) };
        scene.cluster.kill(id)?;
        let directory = scene.cluster.node(id).setup.data.join(self.what.directory());
        let mut originals = Vec::new();
        for Aim { file, bytes, places } in self.aims(&directory)? {
            if places.is_empty() {
                continue;
            }
            let mut damaged = bytes.clone();
            places.into_iter().for_each(|at| damaged[at] = !damaged[at]);
            fs::write(&file, damaged)?;
            originals.push((file, bytes));
        }
        if originals.is_empty() {
            scene.cluster.spawn(id)?;
            return Ok(None);
        }
        let what = map([
            ("kind", Value::keyword(self.what.directory())),
            ("nodes", ids(&[id])),
            ("files", Value::Int(originals.len() as i64)),
        ]);
        Ok(Some(Begun::new(what, true, Damaged { id, files: self.what, originals })))
    }

    fn aims(&self, directory: &Path) -> io::Result<Vec<Aim>> {
        let is_meant = |file: &PathBuf| self.what != Files::Log || is_segment(file);
        let mut aims = Vec::new();
        for file in files(directory)?.into_iter().filter(is_meant) {
            aims.push(Aim { bytes: fs::read(&file)?, file, places: BTreeSet::new() });
        }
        match self.what {
            Files::Log => self.aim_at_frames(&mut aims),
            Files::Image | Files::Snapshots => self.aim_at_bytes(&mut aims),
        }
        Ok(aims)
    }

    fn aim_at_frames(&self, segments: &mut [Aim]) {
        let bytes: Vec<&[u8]> = segments.iter().map(|segment| &*segment.bytes).collect();
        let frames = frames::synced(&bytes);
        let places = self.places.iter().map(|&place| part(frames.len(), place));
        for frame in places.filter_map(|place| frames.get(place)) {
            let at = frame.at + (frame.bytes - BYTES) / 2;
            segments[frame.segment].places.extend(at..at + BYTES);
        }
    }

    fn aim_at_bytes(&self, files: &mut [Aim]) {
        for Aim { bytes, places, .. } in files {
            let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1);
            // Of a file that short the middle is its header and its end at once.
            if used >= 64 * BYTES {
                let starts = self.places.iter().map(|&place| part(used, place));
                places.extend(starts.flat_map(|at| at..at + BYTES));
            }
        }
    }
}

/// A file, what it holds, and which bytes of it are to be flipped: each once, for twice would undo it.
struct Aim {
    file: PathBuf,
    bytes: Vec<u8>,
    places: BTreeSet<usize>,
}

/// So many thousandths.
fn part(of: usize, thousandths: u64) -> usize {
    of * thousandths as usize / 1_000
}

/// Whether a file is part of the log, and not a spare one for later.
fn is_segment(file: &Path) -> bool {
    let name = file.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    name.starts_with("segment-") && name.ends_with(".wal")
}

/// Files below a directory, in the order of their names.
fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if !directory.exists() {
        return Ok(found);
    }
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    found.sort();
    Ok(found)
}

struct Damaged {
    id: u64,
    files: Files,
    originals: Vec<(PathBuf, Vec<u8>)>,
}

impl Active for Damaged {
    fn end<'a>(self: Box<Self>, scene: &'a mut Scene<'_>) -> Ending<'a> {
        Box::pin(async move {
            scene.cluster.spawn(self.id)?;
            let start = start(scene, self.id).await?;
            if start == Start::Neither {
                // It may still come to see the damage, and would be started with it again and again.
                scene.cluster.kill(self.id)?;
            }
            if start != Start::Answers {
                for (file, bytes) in &self.originals {
                    fs::write(file, bytes)?;
                }
                scene.cluster.spawn(self.id)?;
            }
            let proof = start.proof(self.files);
            if let Err(text) = &proof {
                match start {
                    Start::Answers => scene.cluster.note_belief(self.id, text.clone()),
                    Start::Ends(_) => scene.cluster.note_exit(self.id, text.clone()),
                    Start::Neither => {}
                }
            }
            Ok(proof)
        })
    }
}

/// What comes of a node with damaged files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Answers,
    Ends(ExitStatus),
    /// In the time that it may take.
    Neither,
}

impl Start {
    /// A node that goes on with a damaged log has believed it: the log is struck where that cannot be missed.
    fn proof(self, files: Files) -> Proof {
        let damaged = files.directory();
        match (self, files) {
            (Start::Ends(status), Files::Log) if status.code() == Some(LOG_DAMAGED) => {
                Ok("the node refuses its log".to_owned())
            }
            (Start::Ends(status), _) => Err(format!("with a damaged {damaged}: {status}")),
            (Start::Answers, Files::Log) => Err("it answers with a damaged log".to_owned()),
            (Start::Answers, Files::Image | Files::Snapshots) => {
                Ok(format!("the node answers with damaged {damaged}"))
            }
            (Start::Neither, _) => {
                Err(format!("with a damaged {damaged} it neither answers nor ends in {PATIENCE:?}"))
            }
        }
    }
}

/// Waits until a node answers or ends.
async fn start(scene: &mut Scene<'_>, id: u64) -> io::Result<Start> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = scene.cluster.ended(id)? {
            return Ok(Start::Ends(status));
        }
        if scene.cluster.admin(id).status(v1::StatusRequest {}).await.is_ok() {
            return Ok(Start::Answers);
        }
        sleep(LOOK).await;
    }
    Ok(Start::Neither)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn damage(what: Files, places: &[u64]) -> Damage {
        Damage { what, whom: Whom::One, places: places.to_vec() }
    }

    fn aim(bytes: Vec<u8>) -> Aim {
        Aim { file: PathBuf::new(), bytes, places: BTreeSet::new() }
    }

    #[test]
    fn no_byte_is_flipped_twice() {
        let mut aims = [aim(vec![1; 10_000])];
        damage(Files::Image, &[100, 100, 400]).aim_at_bytes(&mut aims);
        let expected = (1_000..1_008).chain(4_000..4_008);
        assert_eq!(aims[0].places, expected.collect());
        let mut aims = [aim(frames::testing::log(40, 4_096))];
        damage(Files::Log, &[100, 100, 105, 500]).aim_at_frames(&mut aims);
        assert_eq!(aims[0].places.len(), 2 * BYTES);
    }

    /// What an earlier use of a segment has left is longer than what is live of it.
    #[test]
    fn a_log_is_struck_where_it_lives() {
        let live = frames::testing::log(40, 0).len();
        for place in 100..=500 {
            let mut aims = [aim(frames::testing::log(40, 60_000))];
            damage(Files::Log, &[place]).aim_at_frames(&mut aims);
            assert_eq!(aims[0].places.len(), BYTES);
            assert!(aims[0].places.iter().all(|at| (512..live).contains(at)), "{place}");
        }
    }

    #[test]
    fn what_a_start_proves() {
        let ends = |code: i32| Start::Ends(ExitStatus::from_raw(code << 8));
        for (start, log, image) in [
            (ends(LOG_DAMAGED), true, false),
            (ends(1), false, false),
            (Start::Answers, false, true),
            (Start::Neither, false, false),
        ] {
            assert_eq!(start.proof(Files::Log).is_ok(), log, "{start:?}");
            assert_eq!(start.proof(Files::Image).is_ok(), image, "{start:?}");
        }
    }

    #[test]
    fn spare_segments_are_no_part_of_the_log() {
        assert!(is_segment(Path::new("log/segment-00000000000000000001.wal")));
        assert!(!is_segment(Path::new("log/spare-00000000000000000002.wal")));
    }
}
