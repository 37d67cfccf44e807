//! Preprocessed MSL as tokens. Passes edit tokens in place and never remove one, so that every line keeps its number.

use std::ops::{Index, IndexMut, Range};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// White space, and whatever a pass has blanked.
    Space,
    /// A line that starts with `#`: a line marker or a pragma.
    Directive,
    Literal,
    /// `[[ … ]]`; the text is what is between.
    Attribute,
    Word,
    Operator,
}

#[derive(Debug, Clone)]
pub(crate) struct Token<'a> {
    pub(crate) kind: Kind,
    pub(crate) text: &'a str,
    /// Text that a pass puts in front of and behind the token.
    pub(crate) before: String,
    pub(crate) after: String,
}

impl Token<'_> {
    pub(crate) fn is(&self, operator: &str) -> bool {
        self.kind == Kind::Operator && self.text == operator
    }

    pub(crate) fn is_word(&self, word: &str) -> bool {
        self.kind == Kind::Word && self.text == word
    }

    pub(crate) fn blank(&mut self) {
        if !matches!(self.kind, Kind::Space | Kind::Directive) {
            (self.kind, self.text) = (Kind::Space, " ");
            self.before.clear();
            self.after.clear();
        }
    }
}

pub(crate) struct Tokens<'a>(Vec<Token<'a>>);

impl<'a> Index<usize> for Tokens<'a> {
    type Output = Token<'a>;

    fn index(&self, at: usize) -> &Token<'a> {
        &self.0[at]
    }
}

impl<'a> IndexMut<usize> for Tokens<'a> {
    fn index_mut(&mut self, at: usize) -> &mut Token<'a> {
        &mut self.0[at]
    }
}

impl<'a> Tokens<'a> {
    pub(crate) fn lex(source: &'a str) -> Self {
        let mut tokens = Vec::new();
        let mut push = |kind, text| tokens.push(Token { kind, text, before: String::new(), after: String::new() });
        let (mut at, mut is_line_start) = (0, true);
        while at < source.len() {
            let rest = &source[at..];
            let first = rest.as_bytes()[0];
            let (kind, len) = if first.is_ascii_whitespace() {
                (Kind::Space, span(rest, |c| c.is_ascii_whitespace()))
            } else if first == b'#' && is_line_start {
                (Kind::Directive, span(rest, |c| c != b'\n'))
            } else if rest.starts_with("[[") {
                let (inner, len) = attribute(rest);
                push(Kind::Attribute, inner);
                // An attribute of several lines leaves its line breaks.
                rest[..len]
                    .match_indices('\n')
                    .for_each(|(line_break, _)| push(Kind::Space, &rest[line_break..=line_break]));
                at += len;
                is_line_start = false;
                continue;
            } else if first == b'"' || first == b'\'' {
                (Kind::Literal, quoted(rest))
            } else if first.is_ascii_alphabetic() || first == b'_' {
                (Kind::Word, span(rest, |c| c.is_ascii_alphanumeric() || c == b'_'))
            } else if first.is_ascii_digit() || (first == b'.' && rest[1..].starts_with(|c: char| c.is_ascii_digit())) {
                (Kind::Literal, number(rest))
            } else {
                let long = ["::", "->", "<<=", ">>="].iter().find(|long| rest.starts_with(**long));
                (Kind::Operator, long.map_or_else(|| rest.chars().next().map_or(1, char::len_utf8), |long| long.len()))
            };
            push(kind, &rest[..len]);
            is_line_start = kind == Kind::Space && (is_line_start || rest[..len].contains('\n'));
            at += len;
        }
        Self(tokens)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn slice(&self, range: Range<usize>) -> &[Token<'a>] {
        &self.0[range]
    }

    /// The next token that means something, or the end.
    pub(crate) fn next(&self, at: usize) -> usize {
        (at + 1..self.len()).find(|&i| !matches!(self[i].kind, Kind::Space | Kind::Directive)).unwrap_or(self.len())
    }

    /// The previous token that means something, attributes left out.
    pub(crate) fn previous(&self, at: usize) -> Option<usize> {
        (0..at).rev().find(|&i| !matches!(self[i].kind, Kind::Space | Kind::Directive | Kind::Attribute))
    }

    pub(crate) fn get(&self, at: usize) -> Option<&Token<'a>> {
        self.0.get(at)
    }

    /// The bracket that closes the one at `open`, or the last token.
    pub(crate) fn close(&self, open: usize) -> usize {
        let opening = self[open].text;
        let closing = match opening {
            "(" => ")",
            "[" => "]",
            _ => "}",
        };
        let mut depth = 0;
        for at in open..self.len() {
            if self[at].is(opening) {
                depth += 1;
            } else if self[at].is(closing) {
                depth -= 1;
                if depth == 0 {
                    return at;
                }
            }
        }
        self.len() - 1
    }

    /// The next of these operators from `at` on, or the end.
    pub(crate) fn find(&self, at: usize, operators: &[&str]) -> usize {
        (at..self.len()).find(|&i| operators.iter().any(|operator| self[i].is(operator))).unwrap_or(self.len())
    }

    /// Where the statement or definition that holds `at` starts.
    pub(crate) fn statement_start(&self, at: usize) -> usize {
        (0..at).rev().find(|&i| [";", "{", "}"].iter().any(|end| self[i].is(end))).map_or(0, |end| end + 1)
    }

    pub(crate) fn blank(&mut self, range: Range<usize>) {
        self.0[range].iter_mut().for_each(Token::blank);
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for token in self.0.iter().filter(|token| token.kind != Kind::Attribute) {
            text.extend([&token.before, token.text, &token.after]);
        }
        text
    }
}

/// Tokens as text on one line, attributes left out.
pub(crate) fn flat(tokens: &[Token]) -> String {
    let mut text = String::new();
    for token in tokens.iter().filter(|token| !matches!(token.kind, Kind::Attribute | Kind::Directive)) {
        if token.kind == Kind::Space {
            if !text.is_empty() && !text.ends_with(' ') {
                text.push(' ');
            }
        } else {
            text.extend([&token.before, token.text, &token.after]);
        }
    }
    text.trim_end().to_owned()
}

/// The argument of `name(…)` in an attribute's text.
pub(crate) fn attribute_argument<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (start, _) = text
        .match_indices(name)
        .find(|(at, _)| !text[..*at].ends_with(is_word) && text[at + name.len()..].trim_start().starts_with('('))?;
    let inner = text[start + name.len()..].trim_start().strip_prefix('(')?;
    // No argument in use holds a bracket, `host_name`'s strings may.
    let end = if name == "host_name" { inner.rfind(')') } else { inner.find(')') };
    Some(inner[..end?].trim())
}

fn span(text: &str, is_part: impl Fn(u8) -> bool) -> usize {
    text.bytes().position(|c| !is_part(c)).unwrap_or(text.len())
}

fn quoted(text: &str) -> usize {
    let quote = text.as_bytes()[0];
    let mut is_escaped = false;
    for (at, c) in text.bytes().enumerate().skip(1) {
        if c == quote && !is_escaped {
            return at + 1;
        }
        is_escaped = c == b'\\' && !is_escaped;
    }
    text.len()
}

fn number(text: &str) -> usize {
    let bytes = text.as_bytes();
    let is_hex = text.starts_with("0x") || text.starts_with("0X");
    let is_part = |at: usize| {
        let exponent = if is_hex { [b'p', b'P'] } else { [b'e', b'E'] };
        bytes[at].is_ascii_alphanumeric()
            || matches!(bytes[at], b'.' | b'_' | b'\'')
            || (matches!(bytes[at], b'+' | b'-') && exponent.contains(&bytes[at - 1]))
    };
    (1..bytes.len()).find(|&at| !is_part(at)).unwrap_or(bytes.len())
}

/// The inside of `[[ … ]]` and the length of the whole.
fn attribute(text: &str) -> (&str, usize) {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match text.as_bytes()[at] {
            b'[' => depth += 1,
            b']' => depth -= 1,
            b'"' => at += quoted(&text[at..]) - 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return (text[2..at - 2].trim(), at);
        }
    }
    (text, text.len())
}
