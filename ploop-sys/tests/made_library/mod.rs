//! Libraries made byte by byte: shared ones (ELF) and static ones (`ar`), with the names that a test gives them.

/// A shared library that says no more than its soname and its functions.
pub(crate) struct Made<'a> {
    pub(crate) soname: Option<&'a str>,
    pub(crate) functions: &'a [&'a str],
    pub(crate) big_endian: bool,
}

impl Made<'_> {
    /// A header; one segment that is loaded, from the beginning of the file on; the dynamic segment; and the names.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        const HEADER: u64 = 64;
        const SEGMENT: u64 = 56;
        const ADDRESS: u64 = 0x40_0000;
        let mut names = vec![0];
        let mut add = |name: &str| {
            let at = names.len() as u64;
            names.extend(name.bytes().chain([0]));
            at
        };
        let soname = self.soname.map(&mut add);
        for function in self.functions {
            add(function);
        }
        let dynamic_at = HEADER + 2 * SEGMENT;
        let entries = 3 + u64::from(soname.is_some());
        let names_at = dynamic_at + 16 * entries;
        let size = names_at + names.len() as u64;

        let mut out = b"\x7fELF\x02".to_vec();
        out.extend([if self.big_endian { 2 } else { 1 }, 1]);
        out.resize(16, 0);
        self.put(&mut out, 2, &[3, 62]); // a shared object
        self.put(&mut out, 4, &[1]);
        self.put(&mut out, 8, &[0, HEADER, 0]); // the entry point, the segments, no sections
        self.put(&mut out, 4, &[0]);
        self.put(&mut out, 2, &[HEADER, SEGMENT, 2, 64, 0, 0]);
        for (kind, at, size) in [(1, 0, size), (2, dynamic_at, 16 * entries)] {
            self.put(&mut out, 4, &[kind, 4]);
            self.put(
                &mut out,
                8,
                &[at, ADDRESS + at, ADDRESS + at, size, size, 8],
            );
        }
        if let Some(soname) = soname {
            self.put(&mut out, 8, &[14, soname]);
        }
        self.put(
            &mut out,
            8,
            &[5, ADDRESS + names_at, 10, names.len() as u64, 0, 0],
        );
        assert_eq!(out.len() as u64, names_at);
        out.extend(names);
        out
    }

    fn put(&self, out: &mut Vec<u8>, width: usize, numbers: &[u64]) {
        for number in numbers {
            match self.big_endian {
                true => out.extend(&number.to_be_bytes()[8 - width..]),
                false => out.extend(&number.to_le_bytes()[..width]),
            }
        }
    }
}

/// A static library with an index of functions, and members with these names and contents.
pub(crate) fn archive(functions: &[&str], members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut index = (functions.len() as u32).to_be_bytes().to_vec();
    index.resize(4 + 4 * functions.len(), 0);
    for function in functions {
        index.extend(function.bytes().chain([0]));
    }
    let mut out = b"!<arch>\n".to_vec();
    let names = members.iter().map(|(name, _)| format!("{name}/"));
    let contents = members.iter().map(|(_, content)| *content);
    let all = std::iter::once("/".to_owned()).chain(names);
    for (name, content) in all.zip(std::iter::once(&*index).chain(contents)) {
        let size = content.len();
        out.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`\n", 0, 0, 0, 644).bytes());
        out.extend(content);
        if size % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}
