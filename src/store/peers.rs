//! The store ids of the other members, as this node met them first. A member whose data directory was
//! wiped has a new store id and has forgotten what it voted for: it must not be taken for the one it
//! was. Trust on first use; nothing is ever forgotten, since a number is never another node's.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::data_dir::{StoreId, replace_file};

/// Whom this node has met.
pub trait PeerBook: Send + Sync + Debug {
    /// The store id under which `node` is known.
    fn known_store(&self, node: u64) -> Option<StoreId>;
    /// Durable when it returns. A node that is known already keeps its store id: the answer says
    /// which one counts.
    fn remember(&self, node: u64, store: StoreId) -> io::Result<StoreId>;
}

type Book = BTreeMap<u64, StoreId>;

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One file: a line per node, its id and its store id.
#[derive(Debug)]
pub struct FilePeers {
    path: PathBuf,
    book: Mutex<Book>,
}

impl FilePeers {
    /// A file that does not exist is an empty book; one that cannot be read as a book is an error,
    /// since to forget a peer is to trust anybody in its place.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<FilePeers> {
        let path = path.into();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        let book = parse(&text).map_err(|line| {
            let why = format!("{}: line {line} is not a node id and a store id", path.display());
            io::Error::new(io::ErrorKind::InvalidData, why)
        })?;
        Ok(FilePeers { path, book: Mutex::new(book) })
    }

    fn save(&self, book: &Book) -> io::Result<()> {
        let lines = book.iter().map(|(node, store)| format!("{node} {store}\n"));
        replace_file(&self.path, lines.collect::<String>().as_bytes())
    }
}

fn parse(text: &str) -> Result<Book, usize> {
    let mut book = Book::new();
    for (number, line) in (1..).zip(text.lines()) {
        let parsed = line
            .split_once(' ')
            .and_then(|(node, store)| Some((node.parse().ok()?, store.parse().ok()?)));
        let (node, store) = parsed.ok_or(number)?;
        if book.insert(node, store).is_some() {
            return Err(number);
        }
    }
    Ok(book)
}

impl PeerBook for FilePeers {
    fn known_store(&self, node: u64) -> Option<StoreId> {
        lock(&self.book).get(&node).copied()
    }

    fn remember(&self, node: u64, store: StoreId) -> io::Result<StoreId> {
        let mut book = lock(&self.book);
        if let Some(known) = book.get(&node) {
            return Ok(*known);
        }
        let mut changed = book.clone();
        changed.insert(node, store);
        self.save(&changed)?;
        *book = changed;
        Ok(store)
    }
}

/// For the simulation. Clones share one book, which outlives the node as a disk does.
#[derive(Debug, Clone, Default)]
pub struct MemoryPeers {
    book: Arc<Mutex<Book>>,
}

impl PeerBook for MemoryPeers {
    fn known_store(&self, node: u64) -> Option<StoreId> {
        lock(&self.book).get(&node).copied()
    }

    fn remember(&self, node: u64, store: StoreId) -> io::Result<StoreId> {
        Ok(*lock(&self.book).entry(node).or_insert(store))
    }
}

/// The path of the book in a data directory.
pub(super) fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("peers")
}
