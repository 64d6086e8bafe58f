//! A reader of Python pickles that runs nothing.
//!
//! A pickle is a program for a small stack machine. What would call Python here only makes an
//! [`Object`] that keeps the name of the callable and its arguments. Values refer to each other by
//! their place in one table, so neither sharing nor cycles copy or recurse, and the table never has
//! more entries than the file has bytes.
//!
//! Opcodes are those of Python's `pickletools`, up to protocol 5, without text numbers and
//! out-of-band buffers, which PyTorch does not write.

use std::collections::HashMap;

use thiserror::Error;

/// Place of a value in its [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place(usize);

/// Everything a pickle holds.
#[derive(Clone, Debug)]
pub struct Pickle {
    values: Vec<Value>,
    root: Place,
    length: usize,
}

/// One value of a pickle.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`, floating-point numbers and bytes: nothing that describes a tensor.
    Other,
    /// `True` or `False`.
    Bool(bool),
    /// A whole number of up to 64 bits.
    Int(i64),
    /// Text.
    Text(String),
    /// Tuple, list or set.
    Sequence(Vec<Place>),
    /// Keys and values in the order they were set.
    Dict(Vec<(Place, Place)>),
    /// A class or function, as `module.name`.
    Global(String),
    /// Something kept outside the pickle, by its id.
    Persistent(Place),
    /// What a call would have made.
    Object(Object),
}

/// The record of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// What was called.
    pub callable: Place,
    /// The sequence of its arguments.
    pub arguments: Place,
    /// What the object was told to take its attributes from.
    pub state: Option<Place>,
    /// Keys and values set on it afterwards.
    pub items: Vec<(Place, Place)>,
}

/// A pickle that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("pickle, byte {at}: {problem}")]
pub struct PickleError {
    /// Where.
    pub at: usize,
    /// What is wrong.
    pub problem: &'static str,
}

impl Pickle {
    /// Reads the pickle at the start of `bytes`.
    ///
    /// # Errors
    /// The bytes end early, or hold an opcode that is unknown or does not fit the stack.
    pub fn read(bytes: &[u8]) -> Result<Self, PickleError> {
        let mut machine = Machine {
            bytes,
            at: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        let mut start = 0;
        let fail = |at, problem| PickleError { at, problem };
        while machine.step().map_err(|problem| fail(start, problem))? {
            start = machine.at;
        }
        let root = machine.pop().map_err(|problem| fail(start, problem))?;
        Ok(Self {
            values: machine.values,
            root,
            length: machine.at,
        })
    }

    /// The value that the pickle stands for.
    pub fn root(&self) -> Place {
        self.root
    }

    /// Length of the pickle in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// The value at a place.
    pub fn get(&self, place: Place) -> &Value {
        &self.values[place.0]
    }

    /// All values, in the order they were read.
    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.values.iter()
    }

    /// The value as text.
    pub fn text(&self, place: Place) -> Option<&str> {
        match self.get(place) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value as a whole number.
    pub fn int(&self, place: Place) -> Option<i64> {
        match self.get(place) {
            Value::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// The value as the name of a class or function.
    pub fn global(&self, place: Place) -> Option<&str> {
        match self.get(place) {
            Value::Global(name) => Some(name),
            _ => None,
        }
    }

    /// The places in a tuple, list or set.
    pub fn sequence(&self, place: Place) -> Option<&[Place]> {
        match self.get(place) {
            Value::Sequence(places) => Some(places),
            _ => None,
        }
    }
}

/// The stack machine. A failed step says what is wrong; the caller knows where.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Place>,
    /// Heights of the stack at the marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Place>,
}

type Step<T> = Result<T, &'static str>;

impl Machine<'_> {
    /// Carries out one opcode; false at the end of the pickle.
    fn step(&mut self) -> Step<bool> {
        match self.byte()? {
            b'.' => return Ok(false),
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_marked()?),
            b'2' => self.stack.push(self.top()?),
            b'N' => self.push(Value::Other),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            code @ (b'J' | b'K' | b'M' | 0x8a | 0x8b) => self.number(code)?,
            b'G' => self.skip(8)?,
            b'B' => self.skip_counted(4)?,
            b'C' => self.skip_counted(1)?,
            0x8e | 0x96 => self.skip_counted(8)?,
            b'T' | b'X' => self.text(4)?,
            b'U' | 0x8c => self.text(1)?,
            0x8d => self.text(8)?,
            b'P' => self.persistent_line()?,
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id));
            }
            code @ (b'p' | b'q' | b'r' | 0x94 | b'g' | b'h' | b'j') => self.memory(code)?,
            code => self.structure(code)?,
        }
        Ok(true)
    }

    fn number(&mut self, code: u8) -> Step<()> {
        let number = match code {
            b'J' => i64::from(i32::from_le_bytes(self.array()?)),
            b'K' => i64::from(self.byte()?),
            b'M' => i64::from(u16::from_le_bytes(self.array()?)),
            code => {
                let width = if code == 0x8a { 1 } else { 4 };
                let length = self.length(width)?;
                match long(self.take(length)?) {
                    Some(number) => number,
                    // Larger than any size; only seeds and hashes are.
                    None => {
                        self.push(Value::Other);
                        return Ok(());
                    }
                }
            }
        };
        self.push(Value::Int(number));
        Ok(())
    }

    fn memory(&mut self, code: u8) -> Step<()> {
        let key = match code {
            b'p' | b'g' => {
                let line = self.line()?;
                line.parse().map_err(|_| "expected a number")?
            }
            b'q' | b'h' => u64::from(self.byte()?),
            0x94 => self.memo.len() as u64,
            _ => u64::from(u32::from_le_bytes(self.array()?)),
        };
        if matches!(code, b'g' | b'h' | b'j') {
            let place = self.memo.get(&key).ok_or("nothing remembered there")?;
            self.stack.push(*place);
        } else {
            self.memo.insert(key, self.top()?);
        }
        Ok(())
    }

    /// Opcodes that put values together.
    fn structure(&mut self, code: u8) -> Step<()> {
        match code {
            b')' | b']' | 0x8f => self.push(Value::Sequence(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            b't' | b'l' | 0x91 => {
                let places = self.pop_marked()?;
                self.push(Value::Sequence(places));
            }
            0x85..=0x87 => {
                let count = usize::from(code - 0x84);
                let places = self.pop_many(count)?;
                self.push(Value::Sequence(places));
            }
            b'd' => {
                let items = pairs(&self.pop_marked()?)?;
                self.push(Value::Dict(items));
            }
            b'a' => {
                let places = self.pop_many(1)?;
                self.extend(&places)?;
            }
            b'e' | 0x90 => {
                let places = self.pop_marked()?;
                self.extend(&places)?;
            }
            b's' => {
                let places = self.pop_many(2)?;
                self.set_items(&places)?;
            }
            b'u' => {
                let places = self.pop_marked()?;
                self.set_items(&places)?;
            }
            code => self.call(code)?,
        }
        Ok(())
    }

    /// Opcodes that would look up or call something.
    fn call(&mut self, code: u8) -> Step<()> {
        match code {
            b'c' => {
                let name = format!("{}.{}", self.line()?, self.line()?);
                self.push(Value::Global(name));
            }
            0x93 => {
                let parts = self.pop_many(2)?;
                let part = |place: Place| match &self.values[place.0] {
                    Value::Text(text) => Ok(text.as_str()),
                    _ => Err("expected a name"),
                };
                let name = format!("{}.{}", part(parts[0])?, part(parts[1])?);
                self.push(Value::Global(name));
            }
            b'R' | 0x81 => {
                let parts = self.pop_many(2)?;
                self.push_object(parts[0], parts[1]);
            }
            0x92 => {
                let parts = self.pop_many(3)?;
                self.push_object(parts[0], parts[1]);
            }
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                if let Value::Object(object) = &mut self.values[target.0] {
                    object.state = Some(state);
                }
            }
            _ => return Err("unknown opcode; the file is damaged or no checkpoint"),
        }
        Ok(())
    }

    fn push_object(&mut self, callable: Place, arguments: Place) {
        self.push(Value::Object(Object {
            callable,
            arguments,
            state: None,
            items: Vec::new(),
        }));
    }

    fn extend(&mut self, places: &[Place]) -> Step<()> {
        let target = self.top()?;
        if let Value::Sequence(sequence) = &mut self.values[target.0] {
            sequence.extend_from_slice(places);
        }
        Ok(())
    }

    fn set_items(&mut self, places: &[Place]) -> Step<()> {
        let new = pairs(places)?;
        let target = self.top()?;
        match &mut self.values[target.0] {
            Value::Dict(items) => items.extend(new),
            Value::Object(object) => object.items.extend(new),
            _ => return Err("items set on something without any"),
        }
        Ok(())
    }

    fn persistent_line(&mut self) -> Step<()> {
        let id = self.line()?;
        self.push(Value::Text(id));
        let id = self.pop()?;
        self.push(Value::Persistent(id));
        Ok(())
    }

    fn text(&mut self, width: usize) -> Step<()> {
        let length = self.length(width)?;
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.push(Value::Text(text));
        Ok(())
    }

    fn skip(&mut self, length: usize) -> Step<()> {
        self.take(length)?;
        self.push(Value::Other);
        Ok(())
    }

    fn skip_counted(&mut self, width: usize) -> Step<()> {
        let length = self.length(width)?;
        self.skip(length)
    }

    fn push(&mut self, value: Value) {
        self.stack.push(Place(self.values.len()));
        self.values.push(value);
    }

    /// The last value above the innermost mark.
    fn top(&self) -> Step<Place> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(place) if self.stack.len() > floor => Ok(*place),
            _ => Err("the stack is empty"),
        }
    }

    fn pop(&mut self) -> Step<Place> {
        let place = self.top()?;
        self.stack.pop();
        Ok(place)
    }

    fn pop_many(&mut self, count: usize) -> Step<Vec<Place>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count) {
            Some(start) if start >= floor => Ok(self.stack.split_off(start)),
            _ => Err("the stack is empty"),
        }
    }

    fn pop_marked(&mut self) -> Step<Vec<Place>> {
        let start = self.marks.pop().ok_or("no mark on the stack")?;
        Ok(self.stack.split_off(start))
    }

    fn take(&mut self, length: usize) -> Step<&[u8]> {
        let end = self.at.checked_add(length);
        let end = end.filter(|end| *end <= self.bytes.len());
        let end = end.ok_or("the file ends here")?;
        let bytes = &self.bytes[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| "the file ends here")
    }

    fn byte(&mut self) -> Step<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// A length of `width` bytes.
    fn length(&mut self, width: usize) -> Step<usize> {
        let bytes = self.take(width)?;
        let folded = bytes.iter().rev();
        let length = folded.fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        usize::try_from(length).map_err(|_| "the file ends here")
    }

    /// Text up to the end of the line.
    fn line(&mut self) -> Step<String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\n');
        let length = length.ok_or("a line without an end")?;
        self.at += length + 1;
        Ok(String::from_utf8_lossy(&rest[..length]).into_owned())
    }
}

/// A whole number in two's complement, lowest byte first, if it fits.
fn long(bytes: &[u8]) -> Option<i64> {
    let sign = match bytes.last() {
        Some(last) if *last >= 0x80 => 0xff,
        _ => 0,
    };
    let mut wide = [sign; 8];
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(wide))
}

fn pairs(places: &[Place]) -> Step<Vec<(Place, Place)>> {
    let (pairs, rest) = places.as_chunks::<2>();
    match rest.is_empty() {
        true => Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect()),
        false => Err("a key without a value"),
    }
}

#[cfg(test)]
mod tests;
