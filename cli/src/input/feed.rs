//! Bytes of a file or of standard input, read ahead by a thread of their own.
//!
//! Whoever takes from it is told before it has to wait, so that what was gathered can be handed on: lines typed by hand
//! or coming through a pipe are published at once, those of a file in full batches. At most [`CHUNKS_MAX`] chunks are
//! read ahead.

use std::io::{self, BufRead as _, Read};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use bytes::{Buf, Bytes};

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that are read ahead.
const CHUNKS_MAX: usize = 4;

/// Called before waiting for input.
pub(crate) type OnWait<'a> = Box<dyn FnMut() -> io::Result<()> + 'a>;

/// See the [module](self).
pub(crate) struct Feed<'a> {
    chunks: Receiver<io::Result<Bytes>>,
    current: Bytes,
    on_wait: OnWait<'a>,
    bytes_read: u64,
    /// Nothing was taken yet of what is text.
    may_begin_with_mark: bool,
}

/// What some editors put at the beginning of text in UTF-8. It is no part of it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A line, or what there was instead.
pub(crate) enum Line {
    /// Without its end.
    Whole(Bytes),
    /// It had so many bytes, which were passed over.
    TooLong(u64),
}

impl<'a> Feed<'a> {
    /// Of `source`, which a thread reads to its end.
    pub(crate) fn new(mut source: impl Read + Send + 'static, on_wait: OnWait<'a>) -> Self {
        let (sender, chunks) = sync_channel(CHUNKS_MAX);
        std::thread::spawn(move || {
            loop {
                let mut chunk = vec![0; CHUNK_BYTES];
                let outcome = match source.read(&mut chunk) {
                    Ok(0) => return,
                    Ok(count) => {
                        chunk.truncate(count);
                        Ok(Bytes::from(chunk))
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => Err(error),
                };
                let is_end = outcome.is_err();
                // Nobody takes it any more, or there is nothing more.
                if sender.send(outcome).is_err() || is_end {
                    return;
                }
            }
        });
        Self { chunks, current: Bytes::new(), on_wait, bytes_read: 0, may_begin_with_mark: false }
    }

    /// The same of text: a byte order mark at its beginning is passed over.
    pub(crate) fn of_text(self) -> Self {
        Self { may_begin_with_mark: true, ..self }
    }

    /// Bytes taken so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.bytes_read - self.current.len() as u64
    }

    /// Makes sure that there is something in `current`; `false` at the end.
    fn fill(&mut self) -> io::Result<bool> {
        if std::mem::take(&mut self.may_begin_with_mark) {
            self.pass_mark()?;
        }
        self.receive()
    }

    fn pass_mark(&mut self) -> io::Result<()> {
        let mut begin = Vec::new();
        while begin.len() < BYTE_ORDER_MARK.len() && BYTE_ORDER_MARK.starts_with(&begin) && self.receive()? {
            begin.extend_from_slice(&std::mem::take(&mut self.current));
        }
        self.current = begin.into();
        if self.current.starts_with(BYTE_ORDER_MARK) {
            self.current.advance(BYTE_ORDER_MARK.len());
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<bool> {
        while self.current.is_empty() {
            let chunk = match self.chunks.try_recv() {
                Ok(chunk) => chunk?,
                Err(TryRecvError::Disconnected) => return Ok(false),
                Err(TryRecvError::Empty) => {
                    (self.on_wait)()?;
                    match self.chunks.recv() {
                        Ok(chunk) => chunk?,
                        Err(_) => return Ok(false),
                    }
                }
            };
            self.bytes_read += chunk.len() as u64;
            self.current = chunk;
        }
        Ok(true)
    }

    /// The next line without its `\n`, or `None` at the end. Most lines share the memory of their chunk.
    pub(crate) fn line(&mut self, bytes_max: usize) -> io::Result<Option<Line>> {
        if !self.fill()? {
            return Ok(None);
        }
        if let Some(end) = find_newline(&self.current) {
            let line = self.current.split_to(end);
            self.current.advance(1);
            return Ok(Some(whole_or_too_long(line, bytes_max)));
        }
        let mut gathered = Vec::new();
        let mut total: u64 = 0;
        loop {
            let end = find_newline(&self.current);
            let part = self.current.split_to(end.unwrap_or(self.current.len()));
            total += part.len() as u64;
            if total <= bytes_max as u64 {
                gathered.extend_from_slice(&part);
            } else {
                // Too long already: only counted from here on.
                gathered = Vec::new();
            }
            if end.is_some() {
                self.current.advance(1);
                break;
            }
            if !self.fill()? {
                break;
            }
        }
        let is_too_long = total > bytes_max as u64;
        Ok(Some(if is_too_long { Line::TooLong(total) } else { Line::Whole(gathered.into()) }))
    }

    /// Exactly `count` bytes, or fewer at the end.
    pub(crate) fn take(&mut self, count: usize) -> io::Result<Bytes> {
        if !self.fill()? {
            return Ok(Bytes::new());
        }
        if self.current.len() >= count {
            return Ok(self.current.split_to(count));
        }
        let mut gathered = Vec::with_capacity(count);
        while gathered.len() < count && self.fill()? {
            let part = self.current.split_to(self.current.len().min(count - gathered.len()));
            gathered.extend_from_slice(&part);
        }
        Ok(gathered.into())
    }
}

fn whole_or_too_long(line: Bytes, bytes_max: usize) -> Line {
    if line.len() > bytes_max { Line::TooLong(line.len() as u64) } else { Line::Whole(line) }
}

fn find_newline(bytes: &[u8]) -> Option<usize> {
    // The library's search looks at many bytes at once; of a slice it never fails.
    let count = (&mut &*bytes).skip_until(b'\n').ok()?;
    count.checked_sub(1).filter(|last| bytes[*last] == b'\n')
}

impl Read for Feed<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if !self.fill()? {
            return Ok(0);
        }
        let count = out.len().min(self.current.len());
        self.current.copy_to_slice(&mut out[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces of that length.
    struct Pieces(Vec<u8>, usize);

    impl Read for Pieces {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(out.len());
            out[..count].copy_from_slice(&self.0[..count]);
            self.0.drain(..count);
            Ok(count)
        }
    }

    fn lines(text: &str, piece: usize, bytes_max: usize) -> Vec<Result<String, u64>> {
        let mut feed = Feed::new(Pieces(text.into(), piece), Box::new(|| Ok(())));
        let mut lines = Vec::new();
        while let Some(line) = feed.line(bytes_max).unwrap() {
            lines.push(match line {
                Line::Whole(line) => Ok(String::from_utf8(line.to_vec()).unwrap()),
                Line::TooLong(bytes) => Err(bytes),
            });
        }
        assert_eq!(feed.bytes_read(), text.len() as u64);
        lines
    }

    #[test]
    fn lines_are_found_wherever_chunks_end() {
        for piece in 1..12 {
            let whole = |text: &str| Ok(text.to_owned());
            assert_eq!(
                lines("one\n\ntwo\nthree", piece, 9),
                [whole("one"), whole(""), whole("two"), whole("three")]
            );
            assert_eq!(lines("a\n0123456789\nb\n", piece, 9), [whole("a"), Err(10), whole("b")]);
            assert_eq!(lines("", piece, 9), []);
        }
    }

    /// The mark was taken for a part of the first key or line, and NDJSON with it was refused.
    #[test]
    fn a_byte_order_mark_is_passed_over_at_the_beginning_of_text_only() {
        let first = |bytes: &[u8], piece: usize| {
            let mut feed = Feed::new(Pieces(bytes.into(), piece), Box::new(|| Ok(()))).of_text();
            match feed.line(9).unwrap() {
                Some(Line::Whole(line)) => Some(line.to_vec()),
                _ => None,
            }
        };
        for piece in 1..6 {
            assert_eq!(first(b"\xef\xbb\xbfone\n", piece).unwrap(), b"one");
            assert_eq!(first(b"\xef\xbb\xbf\xef\xbb\xbf\n", piece).unwrap(), BYTE_ORDER_MARK);
            assert_eq!(first(b"\xef\xbbone\n", piece).unwrap(), b"\xef\xbbone");
            assert_eq!(first(b"\xef\xbb", piece).unwrap(), b"\xef\xbb");
            assert_eq!(first(b"\xef\xbb\xbf", piece), None);
            assert_eq!(first(b"", piece), None);
        }
    }

    #[test]
    fn whoever_would_wait_is_told_first() {
        let (told, is_told) = std::sync::mpsc::channel();
        let (more, has_more) = std::sync::mpsc::channel::<Vec<u8>>();
        struct Slow(Receiver<Vec<u8>>);
        impl Read for Slow {
            fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                let Ok(bytes) = self.0.recv() else { return Ok(0) };
                out[..bytes.len()].copy_from_slice(&bytes);
                Ok(bytes.len())
            }
        }
        let on_wait = Box::new(move || {
            // Only when it has been told does the input go on.
            let _ = told.send(());
            Ok(())
        });
        let writer = std::thread::spawn(move || {
            is_told.recv().unwrap();
            more.send(b"late\n".to_vec()).unwrap();
        });
        let mut feed = Feed::new(Slow(has_more), on_wait);
        assert!(matches!(feed.line(9).unwrap(), Some(Line::Whole(line)) if &line[..] == b"late"));
        writer.join().unwrap();
    }
}
