//! The meaning of the calls in a pickle: storages, tensors, and the state dict at the end.

use std::collections::HashMap;

use super::machine::{Machine, Storage, Value};
use super::{Global, PickledTensor};
use crate::weights::WeightsError;
use crate::weights::mapped::invalid;

/// More dimensions than any tensor has. Without a limit, a small file could copy one long tuple
/// again and again.
const MOST_DIMENSIONS: usize = 32;
/// The keys under which training programs store the weights next to other entries, the most usual
/// first.
const STATE_DICTS: [&str; 4] = ["state_dict", "model", "module", "model_state_dict"];
/// How deep dicts are searched.
const MOST_NESTED: usize = 3;
/// Keys of a dict that a message shows.
const KEYS_SHOWN: usize = 10;
/// Longer than any storage's key, which is a number; as above.
const LONGEST_KEY: usize = 64;

impl Machine<'_> {
    /// BINPERSID: ('storage', type, key, location, elements). The location (`cuda:0`) is where the
    /// tensor was when it was saved, and is ignored; the zip decides the size.
    pub(super) fn persistent(&mut self) -> Result<(), WeightsError> {
        let id = self.pop()?;
        let items = self.items(id)?;
        let [
            Value::Text(tag),
            Value::Global(Global::Storage(kind)),
            Value::Text(key),
            Value::Text(_),
            Value::Integer(_),
        ] = items[..]
        else {
            return Err(self.broken("a storage is not described as torch.save does"));
        };
        if self.texts[tag] != "storage" || self.texts[key].len() > LONGEST_KEY {
            return Err(self.broken("a storage is not described as torch.save does"));
        }
        self.storages.push(Storage { key, kind });
        self.stack.push(Value::Storage(self.storages.len() - 1));
        Ok(())
    }

    /// The items of a list or tuple.
    fn items(&self, value: Value) -> Result<&[Value], WeightsError> {
        match value {
            Value::Tuple(index) | Value::List(index) => Ok(&self.sequences[index]),
            _ => Err(self.broken("expected a tuple")),
        }
    }

    /// Sizes or strides.
    fn integers(&self, value: Value) -> Result<Vec<i64>, WeightsError> {
        let items = self.items(value)?;
        if items.len() > MOST_DIMENSIONS {
            return Err(self.broken(&format!("a tensor of {} dimensions", items.len())));
        }
        items
            .iter()
            .map(|item| match item {
                Value::Integer(number) => Ok(*number),
                _ => Err(self.broken("expected whole numbers")),
            })
            .collect()
    }

    /// Does what the few calls of a checkpoint would do; nothing is called.
    pub(super) fn call(
        &mut self,
        callable: Value,
        arguments: Value,
    ) -> Result<Value, WeightsError> {
        let Value::Global(global) = callable else {
            return Err(self.broken("it calls a value that is not a function"));
        };
        match global {
            Global::Inert => Ok(Value::Inert),
            Global::OrderedDict => {
                if !self.items(arguments)?.is_empty() {
                    return Err(self.broken("an OrderedDict made with arguments"));
                }
                self.dicts.push(Vec::new());
                Ok(Value::Dict(self.dicts.len() - 1))
            }
            Global::Size => match self.items(arguments)?[..] {
                [sizes @ (Value::Tuple(_) | Value::List(_))] => Ok(sizes),
                _ => Err(self.broken("a torch.Size made of something else than a tuple")),
            },
            Global::RebuildParameter => match self.items(arguments)?.first() {
                Some(tensor @ Value::Tensor(_)) => Ok(*tensor),
                _ => Err(self.broken("a parameter made of something else than a tensor")),
            },
            Global::RebuildTensor => self.rebuild_tensor(arguments),
            Global::Storage(_) => Err(self.broken("it calls a type of storage")),
        }
    }

    /// _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, …).
    fn rebuild_tensor(&mut self, arguments: Value) -> Result<Value, WeightsError> {
        let (storage, offset, shape, strides) = match self.items(arguments)? {
            [Value::Storage(storage), Value::Integer(offset), shape, strides, ..] => {
                (*storage, *offset, self.integers(*shape)?, self.integers(*strides)?)
            }
            _ => return Err(self.broken("a tensor is not described as torch.save does")),
        };
        let Ok(offset) = usize::try_from(offset) else {
            return Err(self.broken("a tensor with a negative offset"));
        };
        let Storage { key, kind } = self.storages[storage];
        self.tensors.push(PickledTensor {
            storage: self.texts[key].clone(),
            kind,
            offset,
            shape,
            strides,
        });
        Ok(Value::Tensor(self.tensors.len() - 1))
    }

    /// The tensors of a dict, or of the dict under one of [`STATE_DICTS`] in it.
    pub(super) fn state_dict(
        &self,
        top: Value,
    ) -> Result<Vec<(String, PickledTensor)>, WeightsError> {
        let expected = "expected a dict of tensors, or one under the key \"state_dict\", \"model\" \
                        or \"module\"";
        let Value::Dict(top) = top else {
            return Err(invalid(self.path, format!("{expected}, found another object")));
        };
        let tensors = self.tensors_in(top, MOST_NESTED);
        if tensors.is_empty() {
            let keys: Vec<String> = self.dicts[top]
                .iter()
                .filter_map(|pair| match pair {
                    (Value::Text(key), _) => Some(&self.texts[*key]),
                    _ => None,
                })
                .take(KEYS_SHOWN)
                .map(|key| key.chars().take(40).collect::<String>().escape_debug().to_string())
                .collect();
            let found = match keys.len() {
                0 => String::new(),
                _ => format!(": its keys are {}", keys.join(", ")),
            };
            let reason = format!("{expected}, found a dict without tensors{found}");
            return Err(invalid(self.path, reason));
        }
        Ok(tensors
            .into_iter()
            .map(|(name, tensor)| (name.to_owned(), self.tensors[tensor].clone()))
            .collect())
    }

    /// The tensors by name; those under `state_dict` first, then those of the dict itself, then
    /// those under another of [`STATE_DICTS`].
    fn tensors_in(&self, dict: usize, depth: usize) -> HashMap<&str, usize> {
        let under = |wanted: &str| {
            self.dicts[dict].iter().rev().find_map(|pair| match pair {
                (Value::Text(key), Value::Dict(inner)) if self.texts[*key] == wanted => {
                    Some(*inner)
                }
                _ => None,
            })
        };
        let inner = |wanted: &str| {
            let depth = depth.checked_sub(1)?;
            let tensors = self.tensors_in(under(wanted)?, depth);
            Some(tensors).filter(|tensors| !tensors.is_empty())
        };
        if let Some(tensors) = inner(STATE_DICTS[0]) {
            return tensors;
        }
        // As in Python, the last of two equal keys wins.
        let mut tensors = HashMap::new();
        for pair in &self.dicts[dict] {
            if let (Value::Text(key), Value::Tensor(tensor)) = pair {
                tensors.insert(self.texts[*key].as_str(), *tensor);
            }
        }
        if !tensors.is_empty() {
            return tensors;
        }
        STATE_DICTS[1..].iter().find_map(|wanted| inner(wanted)).unwrap_or_default()
    }
}
