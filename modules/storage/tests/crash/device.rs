//! The device that fails: builds the preloaded shim, and plays a power loss on what it recorded.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::workload::Random;

/// The shim, built by the C compiler that Rust links with; once per run.
pub(crate) fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        // Below the target folder, where the other things that the build makes are.
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libfaults.so");
        let unfinished = library.with_extension(format!("so.{}", std::process::id()));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/faults.c");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .args([&unfinished, &source])
            .args(["-ldl", "-lpthread"])
            .status()
            .expect("a C compiler, named cc");
        assert!(status.success(), "the shim does not compile");
        std::fs::rename(&unfinished, &library).expect("the shim's place");
        library
    })
}

/// What of a folder would survive a power loss, kept by the shim.
pub(crate) struct Images {
    folder: TempDir,
}

impl Images {
    /// Nothing yet, for a folder that is empty.
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// Everything below `folder` is on the device as it is.
    pub(crate) fn of(folder: &Path) -> Self {
        let images = Self::new();
        for path in files_below(folder) {
            let inode = path.metadata().expect("a file").ino().to_string();
            copy_sparsely(&path, &images.path().join(inode));
        }
        images
    }

    /// Where the shim keeps them.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Cuts the power: makes each file below `folder` what was flushed of it, plus, block by
    /// block, none, some or all of what was written since. That then is what is on the device.
    /// Returns how many blocks were written but not flushed.
    pub(crate) fn cut_power(&self, folder: &Path, random: &mut Random) -> usize {
        let mut pending = 0;
        for path in files_below(folder) {
            let image = self.path().join(path.metadata().expect("a file").ino().to_string());
            pending += cut_file(&path, &image, random);
        }
        pending
    }
}

fn cut_file(path: &Path, image: &Path, random: &mut Random) -> usize {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("a file of the store");
    // A file that was never flushed has its name and nothing else.
    let image =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(image).expect("an image");
    let written = file.metadata().expect("a size").len();
    let flushed = image.metadata().expect("a size").len();
    let block = if random.within(0..2) == 0 { 4096 } else { 512 };
    let kept_of_8 = [0, 4, 7, 8][usize::try_from(random.within(0..4)).expect("small")];
    let mut pending = 0;
    let mut end = flushed;
    let mut now = vec![0; block];
    let mut then = vec![0; block];
    for at in (0..written.max(flushed)).step_by(block) {
        let now = read(&file, at, &mut now);
        let then = read(&image, at, &mut then);
        if now == then {
            continue;
        }
        pending += 1;
        if random.within(0..8) < kept_of_8 && now.len() >= then.len() {
            image.write_all_at(now, at).expect("an image");
            end = end.max(at + now.len() as u64);
        } else {
            // Past the flushed end there was a hole before.
            let mut old = then.to_vec();
            old.resize(now.len().max(then.len()), 0);
            file.write_all_at(&old, at).expect("a file of the store");
        }
    }
    file.set_len(end).expect("a file of the store");
    image.set_len(end).expect("an image");
    pending
}

/// Copies a file but for blocks of zeros, of which preallocated files are full.
fn copy_sparsely(from: &Path, to: &Path) {
    let from = File::open(from).expect("a file of the store");
    let to = File::create(to).expect("an image");
    let len = from.metadata().expect("a size").len();
    to.set_len(len).expect("an image");
    let mut block = vec![0; 1 << 16];
    for at in (0..len).step_by(block.len()) {
        let block = read(&from, at, &mut block);
        if block.iter().any(|byte| *byte != 0) {
            to.write_all_at(block, at).expect("an image");
        }
    }
}

/// As much of a block as the file has.
fn read<'a>(file: &File, at: u64, block: &'a mut [u8]) -> &'a [u8] {
    let mut have = 0;
    while have < block.len() {
        match file.read_at(&mut block[have..], at + have as u64).expect("readable") {
            0 => break,
            more => have += more,
        }
    }
    &block[..have]
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in folder.read_dir().expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}
