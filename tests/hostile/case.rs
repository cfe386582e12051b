//! A case: files, what stands in the place of files, and how they were made.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::draws::Draws;

/// Lists what git cannot keep: `fifo PATH`, `link PATH`, `folder PATH`, `sparse PATH BYTES`.
const SPECIALS: &str = "specials.txt";

#[derive(Clone, Debug, PartialEq)]
pub enum Special {
    Fifo,
    /// A symlink to nowhere.
    Link,
    Folder,
    /// A file of so many zeros that takes no room.
    Sparse(u64),
}

#[derive(Clone, Default)]
pub struct Case {
    /// By path, with `/`.
    pub files: BTreeMap<String, Vec<u8>>,
    pub specials: BTreeMap<String, Special>,
    /// What was done, for people.
    pub story: Vec<String>,
}

/// What can stand in the place of a file.
pub const NO_FILES: [Special; 4] = [
    Special::Fifo,
    Special::Link,
    Special::Folder,
    Special::Sparse(5 << 30),
];

impl Case {
    pub fn read(folder: &Path) -> Self {
        let mut case = Self::default();
        case.collect(folder, "");
        if let Some(list) = case.files.remove(SPECIALS) {
            for line in String::from_utf8(list).unwrap().lines() {
                let words: Vec<&str> = line.split(' ').collect();
                let special = match words[0] {
                    "fifo" => Special::Fifo,
                    "link" => Special::Link,
                    "folder" => Special::Folder,
                    "sparse" => Special::Sparse(words[2].parse().unwrap()),
                    other => panic!("{}: {other:?}", folder.display()),
                };
                case.specials.insert(words[1].to_owned(), special);
            }
        }
        case
    }

    fn collect(&mut self, folder: &Path, prefix: &str) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            if entry.path().is_dir() {
                self.collect(&entry.path(), &format!("{name}/"));
            } else {
                self.files.insert(name, fs::read(entry.path()).unwrap());
            }
        }
    }

    /// Lays the case out in `folder`, which is made.
    pub fn lay_out(&self, folder: &Path) {
        self.write_files(folder);
        for (name, special) in &self.specials {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match special {
                Special::Fifo => {
                    assert!(
                        Command::new("mkfifo")
                            .arg(&path)
                            .status()
                            .unwrap()
                            .success()
                    );
                }
                Special::Link => link(&path),
                Special::Folder => fs::create_dir(&path).unwrap(),
                Special::Sparse(bytes) => {
                    fs::File::create(&path).unwrap().set_len(*bytes).unwrap();
                }
            }
        }
    }

    /// Keeps the case in `folder` in the form that [`Case::read`] reads.
    pub fn keep(&self, folder: &Path) {
        self.write_files(folder);
        if self.specials.is_empty() {
            return;
        }
        let lines = self.specials.iter().map(|(path, special)| match special {
            Special::Fifo => format!("fifo {path}\n"),
            Special::Link => format!("link {path}\n"),
            Special::Folder => format!("folder {path}\n"),
            Special::Sparse(bytes) => format!("sparse {path} {bytes}\n"),
        });
        fs::write(folder.join(SPECIALS), lines.collect::<String>()).unwrap();
    }

    fn write_files(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        for (name, bytes) in &self.files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    /// Once in twenty puts something that is no file in the place of one.
    pub fn replace_sometimes(&mut self, draws: &mut Draws) {
        if !draws.one_in(20) {
            return;
        }
        let paths: Vec<String> = self.files.keys().cloned().collect();
        let special = draws.pick(&NO_FILES).clone();
        if !paths.is_empty() {
            self.replace(draws.pick::<String>(&paths), special);
        }
    }

    /// Puts `special` in the place of the file at `path`.
    pub fn replace(&mut self, path: &str, special: Special) {
        self.story.push(format!("{path}: {special:?}"));
        self.files.remove(path);
        self.specials.insert(path.to_owned(), special);
    }
}

#[cfg(unix)]
fn link(path: &Path) {
    std::os::unix::fs::symlink("nowhere/at/all", path).unwrap();
}

#[cfg(not(unix))]
fn link(_: &Path) {}
