//! Gets the client's package with npm and makes the table of what is embedded.
//!
//! What must hold: the package is the one whose hash is in `package-lock.json`, and none of its scripts is run; only
//! files with a licence that lets the server ship them are taken: in particular nothing of
//! libomemo.js, which is GPL; without npm, or without a registry, the server is built all the same, without the client.
//! npm's own configuration says where packages come from.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The files of the package that the page needs, within its `dist` folder: files, and folders that are taken
/// whole.
const TAKEN: [&str; 6] = [
    "converse.min.js",
    "converse.min.css",
    "emoji.json",
    "chunkjs/locales",
    "images/favicon.ico",
    "images/logo/conversejs-filled.svg",
];

fn main() -> Result<()> {
    for file in ["build.rs", "package.json", "package-lock.json", "page"] {
        println!("cargo:rerun-if-changed={file}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let source = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let mut table = Table::new(&out)?;
    for name in ["page.js", "page.css"] {
        table.add(&format!("/chat/{name}"), &fs::read(source.join("page").join(name))?)?;
    }
    let folder = out.join("npm");
    let version = match install(&source, &folder) {
        Ok(modules) => {
            add_client(&mut table, &modules)?;
            let version = version(&modules.join("converse.js"))?;
            // What is needed of it is in the table.
            fs::remove_dir_all(&folder)?;
            Some(version)
        }
        Err(error) => {
            println!(
                "cargo:warning=the server is built without its chat page: {error}. With npm and a registry at \
                 hand, touch modules/chat/package.json and build again"
            );
            None
        }
    };
    let text = format!(
        "/// The version of Converse.js that is embedded.\n\
         pub(crate) const CONVERSE: Option<&str> = {version:?};\n\
         /// What is embedded, by path.\n\
         pub(crate) static ASSETS: &[Asset] = &[\n{}];\n",
        table.text
    );
    fs::write(out.join("assets.rs"), text)?;
    Ok(())
}

/// Installs the package into a folder of its own; returns where the packages are.
fn install(source: &Path, folder: &Path) -> Result<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    for name in ["package.json", "package-lock.json"] {
        fs::copy(source.join(name), folder.join(name))?;
    }
    let output = Command::new("npm")
        .args([
            "ci",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--no-update-notifier",
            "--prefer-offline",
        ])
        .args(["--fetch-retries=1", "--fetch-timeout=60000"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("npm cannot be run ({error})"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let first = said.lines().find(|line| line.contains("error")).unwrap_or("it gave no reason");
        return Err(format!("npm ci failed ({first})").into());
    }
    Ok(folder.join("node_modules"))
}

/// The `version` of a package.
fn version(package: &Path) -> Result<String> {
    let text = fs::read_to_string(package.join("package.json"))?;
    let found =
        text.lines().find_map(|line| line.trim().strip_prefix("\"version\": \"")?.strip_suffix("\","));
    Ok(found.ok_or("the package has no version")?.to_owned())
}

/// Adds the client's files, and the licences of all packages that it was built from.
fn add_client(table: &mut Table, modules: &Path) -> Result<()> {
    let dist = modules.join("converse.js").join("dist");
    for taken in TAKEN {
        let mut files = Vec::new();
        walk(&dist.join(taken), &mut files)?;
        for file in files {
            let name = file.strip_prefix(&dist)?.to_str().ok_or("a file's name is not UTF-8")?.to_owned();
            if !name.ends_with(".map") {
                table.add(&format!("/chat/{name}"), &fs::read(&file)?)?;
            }
        }
    }
    let mut packages = Vec::new();
    for entry in sorted(modules)? {
        let scoped = entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with('@'));
        if scoped { packages.extend(sorted(&entry)?) } else { packages.push(entry) }
    }
    let mut licences = String::new();
    for package in packages.iter().filter(|package| package.is_dir()) {
        for file in sorted(package)? {
            let name = file.file_name().map(|name| name.to_string_lossy().to_ascii_uppercase());
            if name.is_some_and(|name| name.starts_with("LICEN") || name.starts_with("NOTICE"))
                && file.is_file()
            {
                let title = package.strip_prefix(modules)?.display();
                let text = String::from_utf8_lossy(&fs::read(&file)?).into_owned();
                write!(licences, "==== {title} ====\n\n{}\n\n", text.trim_end())?;
            }
        }
    }
    table.add("/licences/converse.txt", licences.as_bytes())
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut entries = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    entries.sort();
    Ok(entries)
}

fn walk(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_dir() {
        for entry in sorted(path)? {
            walk(&entry, files)?;
        }
    } else {
        files.push(path.to_owned());
    }
    Ok(())
}

/// The table as Rust.
struct Table {
    folder: PathBuf,
    text: String,
    files: usize,
}

impl Table {
    fn new(out: &Path) -> Result<Self> {
        let folder = out.join("gzip");
        fs::create_dir_all(&folder)?;
        Ok(Self { folder, text: String::new(), files: 0 })
    }

    fn add(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let content_type = match path.rsplit('.').next() {
            Some("js") => "text/javascript; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            Some("json") => "application/json",
            Some("svg") => "image/svg+xml",
            Some("ico") => "image/x-icon",
            Some("txt") => "text/plain; charset=utf-8",
            _ => return Err(format!("{path}: a file of an unknown type").into()),
        };
        let file = self.folder.join(format!("{}.gz", self.files));
        self.files += 1;
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(bytes)?;
        fs::write(&file, gzip.finish()?)?;
        let mut tag = String::new();
        for byte in &Sha256::digest(bytes)[..16] {
            write!(tag, "{byte:02x}")?;
        }
        writeln!(
            self.text,
            "    Asset {{ path: {path:?}, content_type: {content_type:?}, tag: {tag:?}, len: {}, gzip: include_bytes!({file:?}) }},",
            bytes.len()
        )?;
        Ok(())
    }
}
