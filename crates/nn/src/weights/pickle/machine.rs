//! The stack machine: its values and its instructions. `tensors` does what its calls mean.

use std::collections::HashMap;
use std::path::Path;

use tch::Kind;

use super::{Global, PickledTensor, global};
use crate::weights::WeightsError;
use crate::weights::mapped::invalid;

/// A number, or an index into one of the arenas of [`Machine`].
#[derive(Debug, Clone, Copy)]
pub(super) enum Value {
    Integer(i64),
    Text(usize),
    List(usize),
    Tuple(usize),
    Dict(usize),
    Storage(usize),
    Tensor(usize),
    Global(Global),
    /// Values that describe no tensor: None, floats, booleans, bytes, and other objects.
    Inert,
}

/// The storage of a tensor: the text of its key, and its dtype.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage {
    pub(super) key: usize,
    pub(super) kind: Kind,
}

/// A run of one program, which owns all values that the program makes.
pub(super) struct Machine<'a> {
    pub(super) path: &'a Path,
    program: &'a [u8],
    position: usize,
    pub(super) stack: Vec<Value>,
    /// Heights of the stack at each MARK.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    pub(super) texts: Vec<String>,
    /// Lists and tuples.
    pub(super) sequences: Vec<Vec<Value>>,
    pub(super) dicts: Vec<Vec<(Value, Value)>>,
    pub(super) storages: Vec<Storage>,
    pub(super) tensors: Vec<PickledTensor>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(path: &'a Path, program: &'a [u8]) -> Self {
        Self {
            path,
            program,
            position: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            texts: Vec::new(),
            sequences: Vec::new(),
            dicts: Vec::new(),
            storages: Vec::new(),
            tensors: Vec::new(),
        }
    }

    pub(super) fn broken(&self, what: &str) -> WeightsError {
        invalid(self.path, format!("broken pickle at byte {}: {what}", self.position))
    }

    fn refused(&self, opcode: &str) -> WeightsError {
        WeightsError::RefusedOpcode {
            file: self.path.to_owned(),
            opcode: opcode.to_owned(),
            position: self.position.saturating_sub(1),
        }
    }

    /// Runs to STOP and returns the value on top.
    pub(super) fn run(&mut self) -> Result<Value, WeightsError> {
        loop {
            match self.take::<1>()?[0] {
                // PROTO
                0x80 => {
                    let [version] = self.take()?;
                    if !(2..=5).contains(&version) {
                        return Err(self.broken("expected protocol 2 to 5"));
                    }
                }
                // FRAME: a hint for buffered reading, which the instructions do not depend on.
                0x95 => drop(self.take::<8>()?),
                // STOP, MARK, POP
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                // NONE, NEWTRUE, NEWFALSE. No part of a tensor's description depends on which one
                // it is, so they need no value of their own.
                b'N' | 0x88 | 0x89 => self.stack.push(Value::Inert),
                // BININT, BININT1, BININT2, LONG1
                b'J' => {
                    let number = i32::from_le_bytes(self.take()?);
                    self.stack.push(Value::Integer(i64::from(number)));
                }
                b'K' => {
                    let [number] = self.take()?;
                    self.stack.push(Value::Integer(i64::from(number)));
                }
                b'M' => {
                    let number = u16::from_le_bytes(self.take()?);
                    self.stack.push(Value::Integer(i64::from(number)));
                }
                0x8a => self.long()?,
                // BINFLOAT: a learning rate, say, in the notes of a training program.
                b'G' => {
                    self.take::<8>()?;
                    self.stack.push(Value::Inert);
                }
                // BINUNICODE, SHORT_BINUNICODE
                b'X' => {
                    let length = u32::from_le_bytes(self.take()?);
                    self.text(length as usize)?;
                }
                0x8c => {
                    let [length] = self.take()?;
                    self.text(usize::from(length))?;
                }
                // BINBYTES, SHORT_BINBYTES
                b'B' => {
                    let length = u32::from_le_bytes(self.take()?);
                    self.bytes(length as usize)?;
                    self.stack.push(Value::Inert);
                }
                b'C' => {
                    let [length] = self.take()?;
                    self.bytes(usize::from(length))?;
                    self.stack.push(Value::Inert);
                }
                // EMPTY_LIST, APPEND, APPENDS
                b']' => {
                    let list = self.sequence(Vec::new());
                    self.stack.push(Value::List(list));
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend_list(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.extend_list(items)?;
                }
                // EMPTY_TUPLE, TUPLE, TUPLE1 to TUPLE3
                b')' => self.push_tuple(Vec::new()),
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push_tuple(items);
                }
                count @ 0x85..=0x87 => {
                    let items = self.pop_many(usize::from(count - 0x84))?;
                    self.push_tuple(items);
                }
                // EMPTY_DICT, SETITEM, SETITEMS
                b'}' => {
                    self.dicts.push(Vec::new());
                    self.stack.push(Value::Dict(self.dicts.len() - 1));
                }
                b's' => {
                    let items = self.pop_many(2)?;
                    self.extend_dict(&items)?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.extend_dict(&items)?;
                }
                // BINPUT, LONG_BINPUT, MEMOIZE
                b'q' => {
                    let [index] = self.take()?;
                    self.remember(u32::from(index))?;
                }
                b'r' => {
                    let index = u32::from_le_bytes(self.take()?);
                    self.remember(index)?;
                }
                0x94 => {
                    let index = u32::try_from(self.memo.len()).unwrap_or(u32::MAX);
                    self.remember(index)?;
                }
                // BINGET, LONG_BINGET
                b'h' => {
                    let [index] = self.take()?;
                    self.recall(u32::from(index))?;
                }
                b'j' => {
                    let index = u32::from_le_bytes(self.take()?);
                    self.recall(index)?;
                }
                // GLOBAL. Python would import the module here, which runs its code. A name is only
                // looked up in a fixed list instead, and one that is not in it ends the run.
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push_global(&module, &name)?;
                }
                // STACK_GLOBAL
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Text(name), Value::Text(module)) = (name, module) else {
                        return Err(self.broken("a global must be named by two texts"));
                    };
                    let (module, name) = (self.texts[module].clone(), self.texts[name].clone());
                    self.push_global(&module, &name)?;
                }
                // BINPERSID: torch.save writes each storage as one.
                b'Q' => self.persistent()?,
                // REDUCE; NEWOBJ is the same for the few classes known here. Neither calls
                // anything: `call` does what those functions would do.
                b'R' | 0x81 => {
                    let (arguments, callable) = (self.pop()?, self.pop()?);
                    let value = self.call(callable, arguments)?;
                    self.stack.push(value);
                }
                // BUILD sets attributes, such as `_metadata` of a state dict. They describe no
                // tensor.
                b'b' => {
                    self.pop()?;
                    match self.stack.last() {
                        Some(Value::Dict(_) | Value::Tensor(_) | Value::Inert) => {}
                        _ => return Err(self.broken("attributes set on a value that has none")),
                    }
                }
                other => return Err(self.refused(&opcode_name(other))),
            }
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], WeightsError> {
        let taken = self.program.get(self.position..).and_then(<[u8]>::first_chunk::<N>).copied();
        self.position = self.position.saturating_add(N);
        taken.ok_or_else(|| self.broken("it ends in the middle"))
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], WeightsError> {
        let end = self.position.checked_add(length);
        let bytes = end.and_then(|end| self.program.get(self.position..end));
        let Some(bytes) = bytes else {
            return Err(self.broken(&format!("a text of {length} bytes reaches beyond its end")));
        };
        self.position += length;
        Ok(bytes)
    }

    fn text(&mut self, length: usize) -> Result<(), WeightsError> {
        // Python can write lone surrogates, which UTF-8 forbids; no name of a tensor has one.
        let text = String::from_utf8_lossy(self.bytes(length)?).into_owned();
        self.texts.push(text);
        self.stack.push(Value::Text(self.texts.len() - 1));
        Ok(())
    }

    fn line(&mut self) -> Result<String, WeightsError> {
        let rest = self.program.get(self.position..).unwrap_or_default();
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
            return Err(self.broken("a name without an end"));
        };
        let line = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.position += length + 1;
        Ok(line)
    }

    /// LONG1: little-endian two's complement of any length. No checkpoint needs more than 64 bits.
    fn long(&mut self) -> Result<(), WeightsError> {
        let [length] = self.take()?;
        let bytes = self.bytes(usize::from(length))?;
        let value = if bytes.len() <= 8 {
            let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
            let mut wide = [if negative { 0xff } else { 0 }; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            Value::Integer(i64::from_le_bytes(wide))
        } else {
            Value::Inert
        };
        self.stack.push(value);
        Ok(())
    }

    /// The lowest height that pops may reach: values below the last MARK belong to the instruction
    /// that will take the MARK off.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    pub(super) fn pop(&mut self) -> Result<Value, WeightsError> {
        if self.stack.len() <= self.floor() {
            return Err(self.broken("it takes a value from an empty stack"));
        }
        // The stack is higher than the floor, so the default is never used.
        Ok(self.stack.pop().unwrap_or(Value::Inert))
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Value>, WeightsError> {
        if self.stack.len() < self.floor() + count {
            return Err(self.broken("it takes a value from an empty stack"));
        }
        Ok(self.stack.split_off(self.stack.len() - count))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, WeightsError> {
        match self.marks.pop() {
            // No pop goes below a mark, so its height is within the stack.
            Some(height) if height <= self.stack.len() => Ok(self.stack.split_off(height)),
            _ => Err(self.broken("it looks for a mark that is not there")),
        }
    }

    fn sequence(&mut self, items: Vec<Value>) -> usize {
        self.sequences.push(items);
        self.sequences.len() - 1
    }

    fn push_tuple(&mut self, items: Vec<Value>) {
        let tuple = self.sequence(items);
        self.stack.push(Value::Tuple(tuple));
    }

    fn extend_list(&mut self, items: Vec<Value>) -> Result<(), WeightsError> {
        match self.stack.last() {
            Some(Value::List(list)) => self.sequences[*list].extend(items),
            // A list subclass that is not rebuilt: its items describe no tensor either.
            Some(Value::Inert) => {}
            _ => return Err(self.broken("items added to a value that is not a list")),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Value]) -> Result<(), WeightsError> {
        let (pairs, rest) = items.as_chunks::<2>();
        match self.stack.last() {
            Some(Value::Dict(dict)) if rest.is_empty() => {
                self.dicts[*dict].extend(pairs.iter().map(|[key, value]| (*key, *value)));
                Ok(())
            }
            _ => Err(self.broken("pairs added to a value that is not a dict")),
        }
    }

    fn remember(&mut self, index: u32) -> Result<(), WeightsError> {
        let Some(value) = self.stack.last() else {
            return Err(self.broken("it remembers the top of an empty stack"));
        };
        // A copy of an index into an arena: recalling a container a million times shares it.
        self.memo.insert(index, *value);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), WeightsError> {
        let Some(value) = self.memo.get(&index) else {
            return Err(self.broken(&format!("it recalls value {index}, which was never kept")));
        };
        self.stack.push(*value);
        Ok(())
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<(), WeightsError> {
        let global = global(module, name).ok_or_else(|| WeightsError::RefusedGlobal {
            file: self.path.to_owned(),
            module: module.escape_debug().to_string(),
            name: name.escape_debug().to_string(),
        })?;
        self.stack.push(Value::Global(global));
        Ok(())
    }
}

/// Names of the instructions that Python knows and that are rejected here.
fn opcode_name(opcode: u8) -> String {
    match opcode {
        b'i' => "INST".to_owned(),
        b'o' => "OBJ".to_owned(),
        b'P' => "PERSID".to_owned(),
        0x82..=0x84 => "EXT".to_owned(),
        0x92 => "NEWOBJ_EX".to_owned(),
        0x8b => "LONG4".to_owned(),
        other => format!("0x{other:02x}"),
    }
}
