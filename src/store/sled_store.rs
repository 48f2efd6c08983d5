//! Where the image lives in the data directory, and what becomes of a damaged one.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::image::{Error, Image, ImageStore};
use super::sled_image::{SledImage, discarded, sync_dir};
use crate::limits::{DISK_OK_BYTES, IMAGES_SET_ASIDE};

/// Openings that may end the process before the image is set aside unread.
const OPEN_ATTEMPTS: usize = 2;

/// `<parent>/image`, next to what was set aside: `image.damaged-<n>`.
#[derive(Debug)]
pub struct SledStore {
    parent: PathBuf,
}

impl SledStore {
    pub fn new(parent: impl Into<PathBuf>) -> SledStore {
        SledStore { parent: parent.into() }
    }

    pub fn dir(&self) -> PathBuf {
        self.parent.join("image")
    }

    fn marker(&self) -> PathBuf {
        self.parent.join("image.opening")
    }

    /// The images that were set aside, oldest first.
    pub fn damaged(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.parent)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("image.damaged-"));
            if let Some(number) = number.and_then(|number| number.parse().ok()) {
                found.push((number, entry.path()));
            }
        }
        found.sort();
        Ok(found)
    }
}

impl ImageStore for SledStore {
    fn open(&mut self) -> Result<Box<dyn Image>, Error> {
        let discarded = discarded(&self.dir());
        if discarded.exists() {
            fs::remove_dir_all(&discarded)?;
        }
        // Not synced: it has to survive the end of the process, not of the machine.
        let attempts = match fs::read(self.marker()) {
            Ok(marks) => marks.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error.into()),
        };
        if attempts >= OPEN_ATTEMPTS {
            return Err(Error::damaged(format!(
                "the process ended {attempts} times while it was being opened"
            )));
        }
        fs::write(self.marker(), vec![b'.'; attempts + 1])?;
        Ok(Box::new(SledImage::open(self.dir())?))
    }

    fn confirm(&mut self) -> io::Result<()> {
        match fs::remove_file(self.marker()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn set_aside(&mut self) -> io::Result<String> {
        let damaged = self.damaged()?;
        let next = damaged.last().map_or(1, |(number, _)| number + 1);
        let name = format!("image.damaged-{next}");
        match fs::rename(self.dir(), self.parent.join(&name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        sync_dir(&self.parent)?;
        self.confirm()?;
        for (_, path) in damaged.iter().rev().skip(IMAGES_SET_ASIDE - 1) {
            fs::remove_dir_all(path)?;
        }
        // The copy is there to be looked at; the new image needs the space more.
        let figures = rustix::fs::statvfs(&self.parent)?;
        if figures.f_bavail.saturating_mul(figures.f_frsize) < DISK_OK_BYTES {
            for (_, path) in self.damaged()? {
                fs::remove_dir_all(path)?;
            }
            return Ok(format!("{name}, and deleted for lack of space"));
        }
        Ok(name)
    }
}
