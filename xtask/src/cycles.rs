//! Finds cycles of modules: two modules must not use each other, directly or by way of others.

use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};

/// A directory of modules. What lies below a module counts as the module.
pub(crate) struct ModuleDirectory {
    pub(crate) directory: PathBuf,
    /// The path of its module in the crate; empty for the crate itself.
    pub(crate) path: Vec<String>,
}

/// The modules that a module uses, and in which of its files.
type Edges = BTreeMap<String, BTreeSet<String>>;

impl ModuleDirectory {
    /// A line for each cycle.
    pub(crate) fn cycles(&self) -> Result<Vec<String>> {
        let modules = self.modules()?;
        let exports = self.exports(&modules)?;
        let mut graph: BTreeMap<&str, Edges> = BTreeMap::new();
        for (module, files) in &modules {
            for file in files {
                let found = self.names_in(file)?;
                for path in found {
                    let Some(first) = path.strip_prefix(&*self.path).and_then(<[_]>::first) else {
                        continue;
                    };
                    let known = exports.get(first).unwrap_or(first);
                    let known = match modules.contains_key(known) {
                        true => known.as_str(),
                        // An item of the parent module itself.
                        false if modules.contains_key(OWN) => OWN,
                        false => continue,
                    };
                    if known != module {
                        let name = file.strip_prefix(&self.directory).unwrap_or(file);
                        let edges = graph.entry(module).or_default();
                        let files = edges.entry(known.to_owned()).or_default();
                        files.insert(name.display().to_string());
                    }
                }
            }
        }
        Ok(cycles(&graph))
    }

    /// Each module and its files. The root of a crate is left out, because it names all modules; `mod.rs` counts as
    /// one.
    fn modules(&self) -> Result<BTreeMap<String, Vec<PathBuf>>> {
        let mut modules = BTreeMap::new();
        for entry in self.directory.read_dir()? {
            let path = entry?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let mut files = Vec::new();
            if path.is_dir() {
                sources(&path, &mut files)?;
            } else if path.extension() == Some(OsStr::new("rs")) {
                files.push(path.clone());
            }
            let name = match &*name {
                "lib" | "main" => continue,
                "mod" => OWN,
                name => name,
            };
            let known: &mut Vec<PathBuf> = modules.entry(name.to_owned()).or_default();
            known.extend(files);
        }
        modules.retain(|_, files| !files.is_empty());
        Ok(modules)
    }

    /// The names that the root reexports, with their modules.
    fn exports(
        &self,
        modules: &BTreeMap<String, Vec<PathBuf>>,
    ) -> Result<BTreeMap<String, String>> {
        let mut exports = BTreeMap::new();
        for root in ["lib.rs", "main.rs", "mod.rs"] {
            let root = self.directory.join(root);
            if !root.exists() {
                continue;
            }
            for item in parsed(&root)?.items {
                let syn::Item::Use(item) = item else { continue };
                if matches!(item.vis, syn::Visibility::Inherited) {
                    continue;
                }
                let mut paths = Vec::new();
                leaves(&item.tree, &mut Vec::new(), &mut paths);
                for path in paths {
                    let path: Vec<String> =
                        path.into_iter().skip_while(|it| it == "self").collect();
                    if let [module, .., name] = &*path {
                        if modules.contains_key(module) {
                            exports.insert(name.clone(), module.clone());
                        }
                    }
                }
            }
        }
        Ok(exports)
    }

    fn names_in(&self, file: &Path) -> Result<BTreeSet<Vec<String>>> {
        let inner = file.strip_prefix(&self.directory).unwrap_or(file);
        let mut here = self.path.clone();
        let parts = inner.with_extension("");
        here.extend(parts.iter().map(|part| part.to_string_lossy().into_owned()));
        if here.last().is_some_and(|last| last == "mod") {
            here.pop();
        }
        let mut names = Names {
            here,
            found: BTreeSet::new(),
        };
        names.visit_file(&parsed(file)?);
        Ok(names.found)
    }
}

/// The name of the parent module itself among its modules.
const OWN: &str = "mod.rs";

fn parsed(file: &Path) -> Result<syn::File> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    syn::parse_file(&text).with_context(|| format!("{} is not Rust", file.display()))
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in directory.read_dir()? {
        let path = entry?.path();
        if path.is_dir() {
            // Tests of a module in files of their own.
            if path.file_name() != Some(OsStr::new("tests")) {
                sources(&path, found)?;
            }
        } else if path.extension() == Some(OsStr::new("rs")) {
            found.push(path);
        }
    }
    Ok(())
}

/// The paths that a source file names outside of its tests, from the root of the crate.
struct Names {
    here: Vec<String>,
    found: BTreeSet<Vec<String>>,
}

impl Names {
    fn add(&mut self, path: Vec<String>) {
        let mut path = path.into_iter().peekable();
        let mut whole = match path.peek().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self" | "super") => self.here.clone(),
            _ => return,
        };
        while let Some(word) = path.next_if(|word| ["crate", "self", "super"].contains(&&**word)) {
            if word == "super" {
                whole.pop();
            }
        }
        whole.extend(path);
        self.found.insert(whole);
    }
}

fn leaves(tree: &syn::UseTree, before: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    match tree {
        syn::UseTree::Path(path) => {
            before.push(path.ident.to_string());
            leaves(&path.tree, before, found);
            before.pop();
        }
        syn::UseTree::Group(group) => {
            for tree in &group.items {
                leaves(tree, before, found);
            }
        }
        syn::UseTree::Name(syn::UseName { ident })
        | syn::UseTree::Rename(syn::UseRename { ident, .. }) => {
            let mut path = before.clone();
            path.push(ident.to_string());
            found.push(path);
        }
        syn::UseTree::Glob(_) => found.push(before.clone()),
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Ident>()
                .is_ok_and(|word| word == "test")
    })
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if is_test(&item.attrs) {
            return;
        }
        let mut paths = Vec::new();
        leaves(&item.tree, &mut Vec::new(), &mut paths);
        for path in paths {
            self.add(path);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.add(
            path.segments
                .iter()
                .map(|segment| segment.ident.to_string())
                .collect(),
        );
        visit::visit_path(self, path);
    }
}

/// The shortest cycle from each module that is in one; each cycle once.
fn cycles(graph: &BTreeMap<&str, Edges>) -> Vec<String> {
    let mut found = Vec::new();
    let mut reported: BTreeSet<BTreeSet<&str>> = BTreeSet::new();
    for &start in graph.keys() {
        let mut paths = vec![vec![start]];
        let mut seen = BTreeSet::new();
        'search: while !paths.is_empty() {
            let mut longer = Vec::new();
            for path in paths {
                let last = path[path.len() - 1];
                for next in graph.get(last).into_iter().flat_map(|edges| edges.keys()) {
                    if next == start {
                        if reported.insert(path.iter().copied().collect()) {
                            found.push(describe(graph, &path));
                        }
                        break 'search;
                    }
                    if seen.insert(next) {
                        let mut path = path.clone();
                        path.push(next);
                        longer.push(path);
                    }
                }
            }
            paths = longer;
        }
    }
    found
}

fn describe(graph: &BTreeMap<&str, Edges>, path: &[&str]) -> String {
    let mut text = path[0].to_owned();
    for (at, module) in path.iter().enumerate() {
        let next = path[(at + 1) % path.len()];
        let files: Vec<&str> = graph[module][next].iter().map(String::as_str).collect();
        text += &format!(" -> {next} (in {})", files.join(", "));
    }
    text
}
