//! What a node keeps on disk: its identity, the log, the image of the state and snapshot files.

pub mod checkpoint;
pub mod data_dir;
pub mod disk;
pub mod driver;
pub mod fault;
pub mod image;
pub mod inbox;
mod page;
pub mod peers;
pub mod pending;
pub mod rebuild;
pub mod receiver;
pub mod recovery;
pub mod sled_image;
pub mod sled_store;
pub mod snapshot;
mod snapshot_reader;
mod snapshot_writer;
pub mod wal;
mod writes;

#[cfg(test)]
mod checkpoint_tests;
#[cfg(test)]
mod data_dir_tests;
#[cfg(test)]
mod figures_tests;
#[cfg(test)]
mod image_tests;
#[cfg(test)]
mod sled_damage_tests;
#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod testing;

pub use data_dir::DataDir;
