//! Files of a node that is down are damaged: bits are flipped in the log, the image or a snapshot.
//!
//! A damaged log must be refused: the node then ends with a code of its own, and gets its file back as an
//! operator would from a disk that recovered. Image and snapshots it must mend by itself. The log is struck
//! in its middle only: what a disk loses at the very end of a log cannot be told from what never reached it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate::proto::v1;
use tokio::time::{Instant, sleep};

use super::{Active, Begun, Ending, Scene, Whom, ids, map};
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
    /// Places, in thousandths of what is used of a file.
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
        for file in files(&directory)? {
            let bytes = fs::read(&file)?;
            let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1);
            // Of a file that short the middle is its header and its end at once.
            if used < 64 * BYTES {
                continue;
            }
            let mut damaged = bytes.clone();
            for place in &self.places {
                let at = used * *place as usize / 1_000;
                damaged[at..at + BYTES].iter_mut().for_each(|byte| *byte = !*byte);
            }
            if damaged != bytes {
                fs::write(&file, damaged)?;
                originals.push((file, bytes));
            }
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
            let status = starts(scene, self.id).await?;
            let Some(status) = status else {
                return Ok(match self.files {
                    // Two places may undo each other or meet what is no longer needed.
                    Files::Log => Ok("the node starts with its damaged log".to_owned()),
                    Files::Image | Files::Snapshots => {
                        Ok(format!("{} damaged files, the node starts", self.originals.len()))
                    }
                });
            };
            for (file, bytes) in &self.originals {
                fs::write(file, bytes)?;
            }
            scene.cluster.spawn(self.id)?;
            Ok(match (self.files, status.code()) {
                (Files::Log, Some(LOG_DAMAGED)) => Ok("the node refuses its log".to_owned()),
                _ => {
                    let text = format!("with a damaged {}: {status}", self.files.directory());
                    scene.cluster.note_exit(self.id, text.clone());
                    Err(text)
                }
            })
        })
    }
}

/// Waits until a node answers, None, or ends.
async fn starts(scene: &mut Scene<'_>, id: u64) -> io::Result<Option<std::process::ExitStatus>> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = scene.cluster.ended(id)? {
            return Ok(Some(status));
        }
        if scene.cluster.admin(id).status(v1::StatusRequest {}).await.is_ok() {
            break;
        }
        sleep(LOOK).await;
    }
    Ok(None)
}
