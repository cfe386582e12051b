//! Runs the SPIR-V of a kernel as one lane would, to see which loads are on their way together.
//!
//! Time is counted in rounds: a load is issued in the round in which its address is known, and its
//! numbers are there in the next one. Arithmetic waits for nothing, since a compiler puts it behind
//! the loads; what it computes is there when its operands are. The lane waits where it cannot go on
//! without a number: at a store to workgroup memory or to a buffer, at a branch, and at the end of
//! each turn of a loop whose number of turns the compiler does not know, for the numbers that it has
//! computed with. Numbers in buffers are 0, or as the caller says.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, HashMap};

use wgpu::naga;

use crate::device::gpu::Kernel;

/// One load of a lane from a storage buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LaneLoad {
    pub(crate) buffer: String,
    /// Numbers that it brings at once.
    pub(crate) numbers: usize,
    pub(crate) round: u32,
}

/// The life of one lane.
#[derive(Debug, Default)]
pub(crate) struct LaneTrace {
    pub(crate) loads: Vec<LaneLoad>,
    /// Rounds that it waited.
    pub(crate) rounds: u32,
    /// Bytes of workgroup memory that its kernel declares.
    pub(crate) scratch: usize,
}

impl LaneTrace {
    /// The loads from each of `buffers` in `round`, all of `numbers` numbers.
    pub(crate) fn in_flight(&self, round: u32, buffer: &str, numbers: usize) -> usize {
        let loads = self.loads.iter();
        loads
            .filter(|load| load.round == round && load.buffer == buffer && load.numbers == numbers)
            .count()
    }

    /// Loads from `buffer` of another number of numbers than `numbers`.
    pub(crate) fn not_of(&self, buffer: &str, numbers: usize) -> usize {
        let loads = self.loads.iter();
        loads
            .filter(|load| load.buffer == buffer && load.numbers != numbers)
            .count()
    }
}

/// The words of `kernel`, as a trusted module is compiled: without checks.
pub(crate) fn spirv(kernel: &Kernel) -> (Vec<u32>, BTreeMap<u32, String>) {
    use naga::back::{pipeline_constants, spv};
    let (label, source, constants) = kernel.parts();
    let entry = label.split("::").nth(1).unwrap();
    let module = naga::front::wgsl::parse_str(source).unwrap();
    let flags = naga::valid::ValidationFlags::all();
    let all = naga::valid::Capabilities::all();
    let info = naga::valid::Validator::new(flags, all)
        .validate(&module)
        .unwrap();
    let constants = constants.iter().map(|(name, v)| ((*name).to_owned(), *v));
    let point = Some((naga::ShaderStage::Compute, entry));
    let (module, info) =
        pipeline_constants::process_overrides(&module, &info, point, &constants.collect()).unwrap();
    let options = spv::Options {
        lang_version: (1, 3),
        flags: spv::WriterFlags::empty(),
        bounds_check_policies: naga::proc::BoundsCheckPolicies {
            index: naga::proc::BoundsCheckPolicy::Unchecked,
            buffer: naga::proc::BoundsCheckPolicy::Unchecked,
            image_load: naga::proc::BoundsCheckPolicy::Unchecked,
            binding_array: naga::proc::BoundsCheckPolicy::Unchecked,
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..spv::Options::default()
    };
    let pipeline = spv::PipelineOptions {
        shader_stage: naga::ShaderStage::Compute,
        entry_point: entry.to_owned(),
    };
    let words = spv::write_vec(&module, &info, &options, Some(&pipeline)).unwrap();
    let variables = module.global_variables.iter();
    let names = variables.filter_map(|(_, variable)| {
        let binding = variable.binding.as_ref()?;
        Some((binding.binding, variable.name.clone()?))
    });
    (words, names.collect())
}

/// Bytes of workgroup memory that `kernel` declares.
pub(crate) fn scratch(kernel: &Kernel) -> usize {
    Spirv::read(&spirv(kernel).0).scratch()
}

/// Runs lane `lane` of workgroup `group` of `kernel` with these `dims`; `stored`: the bits at a place
/// of a buffer.
pub(crate) fn fly(
    kernel: &Kernel,
    dims: &[u32],
    group: [u32; 3],
    lane: u32,
    stored: &dyn Fn(&str, usize) -> u32,
) -> LaneTrace {
    let (words, names) = spirv(kernel);
    let module = Spirv::read(&words);
    let mut flight = Flight {
        names: &names,
        dims,
        group,
        lane,
        stored,
        now: 0,
        due: 0,
        memory: HashMap::new(),
        instances: 1 << 20,
        trace: LaneTrace {
            scratch: module.scratch(),
            ..LaneTrace::default()
        },
        module: &module,
    };
    flight.call(module.entry, &[]);
    flight.trace.rounds = flight.now;
    flight.trace
}

const INPUT: u32 = 1;
const UNIFORM: u32 = 2;
const WORKGROUP: u32 = 4;
/// A lane's own, for all its functions.
const PRIVATE: u32 = 6;
const FUNCTION: u32 = 7;
const STORAGE: u32 = 12;

fn of_lane(class: u32) -> bool {
    matches!(class, PRIVATE | FUNCTION)
}

#[derive(Clone, Debug)]
enum Type {
    /// Void, or what no value has.
    None,
    /// Of so many bytes; one word here. A matrix, which lanes share, is one too.
    Scalar(usize),
    /// Element and their number.
    Many(u32, usize),
    Runtime(u32),
    Struct(Vec<u32>),
    Pointer(u32),
}

struct Variable {
    class: u32,
    pointee: u32,
}

/// A function's instructions, and the place behind each label.
#[derive(Default)]
struct Function {
    parameters: Vec<u32>,
    code: Vec<Vec<u32>>,
    labels: HashMap<u32, usize>,
}

#[derive(Default)]
struct Spirv {
    types: HashMap<u32, Type>,
    constants: HashMap<u32, Vec<Word>>,
    variables: HashMap<u32, Variable>,
    bindings: HashMap<u32, u32>,
    builtins: HashMap<u32, u32>,
    functions: HashMap<u32, Function>,
    entry: u32,
}

/// 32 bits of a value.
#[derive(Clone, Copy, Debug)]
struct Word {
    bits: u32,
    /// The round in which it is there.
    ready: u32,
    /// The compiler knows it.
    known: bool,
}

const ZERO: Word = Word {
    bits: 0,
    ready: 0,
    known: true,
};

#[derive(Clone, Debug)]
enum Value {
    Words(Vec<Word>),
    Pointer {
        /// The variable, or one instance of a function's.
        variable: u32,
        class: u32,
        at: usize,
        pointee: u32,
        ready: u32,
    },
}

impl Spirv {
    fn read(words: &[u32]) -> Self {
        let mut module = Self::default();
        let (mut at, mut function) = (5, None::<(u32, Function)>);
        while at < words.len() {
            let (count, op) = ((words[at] >> 16) as usize, words[at] & 0xffff);
            let own = &words[at..at + count];
            at += count;
            match (op, &mut function) {
                (54, _) => function = Some((own[2], Function::default())),
                (55, Some((_, function))) => function.parameters.push(own[2]),
                (56, _) => {
                    let (id, function) = function.take().unwrap();
                    module.functions.insert(id, function);
                }
                (248, Some((_, function))) => {
                    function.labels.insert(own[1], function.code.len());
                    function.code.push(own.to_vec());
                }
                (_, Some((_, function))) => function.code.push(own.to_vec()),
                (_, None) => module.declare(op, own),
            }
        }
        module
    }

    fn declare(&mut self, op: u32, own: &[u32]) {
        let constant = |bits| Word { bits, ..ZERO };
        match op {
            15 => self.entry = own[2],
            71 if own[2] == 33 => drop(self.bindings.insert(own[1], own[3])),
            71 if own[2] == 11 => drop(self.builtins.insert(own[1], own[3])),
            19 | 33 => drop(self.types.insert(own[1], Type::None)),
            20 | 4456 => drop(self.types.insert(own[1], Type::Scalar(4))),
            21 | 22 => drop(self.types.insert(own[1], Type::Scalar(own[2] as usize / 8))),
            23 | 24 => drop(
                self.types
                    .insert(own[1], Type::Many(own[2], own[3] as usize)),
            ),
            28 => {
                let length = self.constants[&own[3]][0].bits as usize;
                self.types.insert(own[1], Type::Many(own[2], length));
            }
            29 => drop(self.types.insert(own[1], Type::Runtime(own[2]))),
            30 => drop(self.types.insert(own[1], Type::Struct(own[2..].to_vec()))),
            32 => drop(self.types.insert(own[1], Type::Pointer(own[3]))),
            41 => drop(self.constants.insert(own[2], vec![constant(1)])),
            42 => drop(self.constants.insert(own[2], vec![ZERO])),
            43 => drop(self.constants.insert(own[2], vec![constant(own[3])])),
            44 => {
                let parts = own[3..].iter().flat_map(|id| self.constants[id].clone());
                self.constants.insert(own[2], parts.collect());
            }
            46 => {
                let zeros = vec![ZERO; self.size(own[1])];
                self.constants.insert(own[2], zeros);
            }
            59 => {
                let Type::Pointer(pointee) = self.types[&own[1]] else {
                    panic!("a variable is no pointer")
                };
                let variable = Variable {
                    class: own[3],
                    pointee,
                };
                self.variables.insert(own[2], variable);
            }
            _ => {}
        }
    }

    /// Bytes of workgroup memory.
    fn scratch(&self) -> usize {
        let variables = self.variables.values();
        let shared = variables.filter(|variable| variable.class == WORKGROUP);
        shared.map(|variable| self.bytes(variable.pointee)).sum()
    }

    /// Bytes of a value.
    fn bytes(&self, ty: u32) -> usize {
        match &self.types[&ty] {
            Type::None | Type::Runtime(_) | Type::Pointer(_) => 0,
            Type::Scalar(bytes) => *bytes,
            Type::Many(element, count) => self.bytes(*element) * count,
            Type::Struct(members) => members.iter().map(|member| self.bytes(*member)).sum(),
        }
    }

    /// Words of a value.
    fn size(&self, ty: u32) -> usize {
        match &self.types[&ty] {
            Type::None | Type::Runtime(_) | Type::Pointer(_) => 0,
            Type::Scalar(_) => 1,
            Type::Many(element, count) => self.size(*element) * count,
            Type::Struct(members) => members.iter().map(|member| self.size(*member)).sum(),
        }
    }

    /// The type and the first word of element `index` of a value of type `ty`.
    fn element(&self, ty: u32, index: usize) -> (u32, usize) {
        match &self.types[&ty] {
            Type::Many(element, _) | Type::Runtime(element) => {
                (*element, index * self.size(*element))
            }
            Type::Struct(members) => {
                let before = members[..index].iter().map(|member| self.size(*member));
                (members[index], before.sum())
            }
            other => panic!("no elements: {other:?}"),
        }
    }
}

struct Flight<'f> {
    module: &'f Spirv,
    names: &'f BTreeMap<u32, String>,
    dims: &'f [u32],
    group: [u32; 3],
    lane: u32,
    stored: &'f dyn Fn(&str, usize) -> u32,
    now: u32,
    /// When all that was computed with is there.
    due: u32,
    /// By variable and word.
    memory: HashMap<(u32, usize), Word>,
    instances: u32,
    trace: LaneTrace,
}

/// A loop that the lane is in.
struct OpenLoop {
    header: u32,
    merge: u32,
    /// The compiler knows how often it turns.
    known: bool,
}

impl Flight<'_> {
    fn call(&mut self, id: u32, arguments: &[Value]) -> Option<Value> {
        let function = &self.module.functions[&id];
        let mut values: HashMap<u32, Value> = HashMap::new();
        for (parameter, argument) in function.parameters.iter().zip(arguments) {
            values.insert(*parameter, argument.clone());
        }
        let (mut at, mut label, mut before) = (0, 0, 0);
        let mut turns: Vec<OpenLoop> = Vec::new();
        loop {
            let own = &function.code[at];
            at += 1;
            let next = match own[0] & 0xffff {
                248 => {
                    label = own[1];
                    continue;
                }
                245 => {
                    let mut pairs = own[3..].chunks_exact(2);
                    let id = pairs.find(|pair| pair[1] == before).unwrap()[0];
                    let value = self.value(&values, id);
                    values.insert(own[2], value);
                    continue;
                }
                246 => {
                    if turns.last().is_none_or(|turn| turn.header != label) {
                        turns.push(OpenLoop {
                            header: label,
                            merge: own[1],
                            known: true,
                        });
                    }
                    continue;
                }
                247 => continue,
                249 => own[1],
                250 => self.branch(function, &values, own, &mut turns),
                251 => {
                    let word = self.words(&values, own[1])[0];
                    self.wait(word.ready);
                    let mut cases = own[3..].chunks_exact(2);
                    cases
                        .find(|case| case[0] == word.bits)
                        .map_or(own[2], |case| case[1])
                }
                253 => return None,
                254 => return Some(self.value(&values, own[1])),
                _ => {
                    if let Some((id, value)) = self.step(&values, own) {
                        values.insert(id, value);
                    }
                    continue;
                }
            };
            if let Some(turn) = turns.last() {
                if next == turn.merge {
                    turns.pop();
                } else if next == turn.header && !turn.known {
                    self.wait(self.due);
                }
            }
            (before, at) = (label, function.labels[&next]);
        }
    }

    fn branch(
        &mut self,
        function: &Function,
        values: &HashMap<u32, Value>,
        own: &[u32],
        turns: &mut [OpenLoop],
    ) -> u32 {
        let word = self.words(values, own[1])[0];
        self.wait(word.ready);
        if let (Some(turn), false) = (turns.last_mut(), word.known) {
            let ends = |target: &u32| {
                let first = function.code.get(function.labels[target] + 1);
                *target == turn.merge
                    || first.is_some_and(|first| first[0] & 0xffff == 249 && first[1] == turn.merge)
            };
            if own[2..4].iter().any(ends) {
                turn.known = false;
            }
        }
        own[if word.bits != 0 { 2 } else { 3 }]
    }

    fn wait(&mut self, round: u32) {
        self.now = self.now.max(round);
    }

    fn value(&self, values: &HashMap<u32, Value>, id: u32) -> Value {
        if let Some(value) = values.get(&id) {
            return value.clone();
        }
        if let Some(words) = self.module.constants.get(&id) {
            return Value::Words(words.clone());
        }
        let variable = &self.module.variables[&id];
        Value::Pointer {
            variable: id,
            class: variable.class,
            at: 0,
            pointee: variable.pointee,
            ready: 0,
        }
    }

    fn words(&self, values: &HashMap<u32, Value>, id: u32) -> Vec<Word> {
        match self.value(values, id) {
            Value::Words(words) => words,
            Value::Pointer { .. } => panic!("%{id}: a pointer where a value belongs"),
        }
    }

    fn name(&self, variable: u32) -> String {
        let binding = self.module.bindings.get(&variable);
        let name = binding.and_then(|binding| self.names.get(binding));
        name.cloned().unwrap_or_default()
    }

    /// One instruction that is no jump: its result, if it has one.
    fn step(&mut self, values: &HashMap<u32, Value>, own: &[u32]) -> Option<(u32, Value)> {
        let value = match own[0] & 0xffff {
            57 => {
                let arguments = own[4..].iter().map(|id| self.value(values, *id));
                let arguments: Vec<Value> = arguments.collect();
                let value = self.call(own[3], &arguments)?;
                return Some((own[2], value));
            }
            59 => self.variable(own),
            61 => self.load(&self.value(values, own[3])),
            62 => {
                let words = self.words(values, own[2]);
                self.store(&self.value(values, own[1]), &words);
                return None;
            }
            65 => self.chain(values, own),
            68 => Value::Words(vec![Word {
                bits: 1 << 20,
                known: false,
                ..ZERO
            }]),
            77 => {
                let place = self.words(values, own[4])[0];
                let mut word = self.words(values, own[3])[place.bits as usize];
                (word.ready, word.known) = (word.ready.max(place.ready), false);
                Value::Words(vec![word])
            }
            79 => {
                let (mut all, more) = (self.words(values, own[3]), self.words(values, own[4]));
                all.extend(more);
                Value::Words(own[5..].iter().map(|place| all[*place as usize]).collect())
            }
            80 => {
                let parts = own[3..].iter().flat_map(|id| self.words(values, *id));
                Value::Words(parts.collect())
            }
            // Of vectors alone, whose elements are words.
            81 => Value::Words(vec![self.words(values, own[3])[own[4] as usize]]),
            82 => {
                let mut words = self.words(values, own[4]);
                words[own[5] as usize] = self.words(values, own[3])[0];
                Value::Words(words)
            }
            83 | 124 => Value::Words(self.words(values, own[3])),
            224 | 225 => return None,
            4457 => Value::Words(vec![Word {
                known: false,
                ..ZERO
            }]),
            4458 => {
                let ready = self.words(values, own[2])[0].ready;
                self.wait(ready);
                return None;
            }
            op => self.compute(values, op, own),
        };
        Some((own[2], value))
    }

    fn variable(&mut self, own: &[u32]) -> Value {
        let Type::Pointer(pointee) = self.module.types[&own[1]] else {
            panic!("a variable is no pointer")
        };
        self.instances += 1;
        let variable = self.instances;
        let initial = own.get(4).map(|id| self.module.constants[id].clone());
        for (at, word) in initial.into_iter().flatten().enumerate() {
            self.memory.insert((variable, at), word);
        }
        Value::Pointer {
            variable,
            class: FUNCTION,
            at: 0,
            pointee,
            ready: 0,
        }
    }

    fn chain(&self, values: &HashMap<u32, Value>, own: &[u32]) -> Value {
        let Value::Pointer {
            variable,
            class,
            mut at,
            mut pointee,
            mut ready,
        } = self.value(values, own[3])
        else {
            panic!("a chain from no pointer")
        };
        for index in &own[4..] {
            let index = self.words(values, *index)[0];
            let (element, first) = self.module.element(pointee, index.bits as usize);
            (pointee, at, ready) = (element, at + first, ready.max(index.ready));
        }
        Value::Pointer {
            variable,
            class,
            at,
            pointee,
            ready,
        }
    }

    fn load(&mut self, from: &Value) -> Value {
        let Value::Pointer {
            variable,
            class,
            at,
            pointee,
            ready,
        } = *from
        else {
            panic!("a load from no pointer")
        };
        let numbers = self.module.size(pointee);
        let unknown = |bits| Word {
            bits,
            ready: 0,
            known: false,
        };
        let words = match class {
            INPUT => match self.module.builtins[&variable] {
                26 => self.group.map(unknown).to_vec(),
                29 => vec![unknown(self.lane)],
                // In subgroups of 32.
                40 => vec![unknown(self.lane / 32)],
                other => panic!("built-in {other}"),
            },
            UNIFORM => (at..at + numbers)
                .map(|at| unknown(self.dims[at]))
                .collect(),
            STORAGE => {
                let (buffer, round) = (self.name(variable), self.now.max(ready));
                let word = |at| Word {
                    bits: (self.stored)(&buffer, at),
                    ready: round + 1,
                    known: false,
                };
                let words = (at..at + numbers).map(word).collect();
                self.trace.loads.push(LaneLoad {
                    buffer,
                    numbers,
                    round,
                });
                words
            }
            _ => {
                // Another lane's numbers are there behind the barrier.
                let missing = if of_lane(class) { ZERO } else { unknown(0) };
                let word = |at| self.memory.get(&(variable, at)).copied().unwrap_or(missing);
                (at..at + numbers).map(word).collect()
            }
        };
        Value::Words(words)
    }

    fn store(&mut self, to: &Value, words: &[Word]) {
        let Value::Pointer {
            variable,
            class,
            at,
            ready,
            ..
        } = *to
        else {
            panic!("a store to no pointer")
        };
        if !of_lane(class) {
            let all = words.iter().map(|word| word.ready).fold(ready, u32::max);
            self.wait(all);
        }
        for (i, word) in words.iter().enumerate() {
            let known = word.known && of_lane(class);
            self.memory
                .insert((variable, at + i), Word { known, ..*word });
        }
    }

    /// Arithmetic, element by element.
    fn compute(&mut self, values: &HashMap<u32, Value>, op: u32, own: &[u32]) -> Value {
        let (op, operands) = match op {
            12 => (1000 + own[4], &own[5..]),
            _ => (op, &own[3..]),
        };
        let operands: Vec<Vec<Word>> = operands.iter().map(|id| self.words(values, *id)).collect();
        let all = operands.iter().flatten();
        let ready = all.clone().map(|word| word.ready).fold(0, u32::max);
        let known = all.clone().all(|word| word.known);
        // To choose among numbers is to wait for none of them.
        self.due = self.due.max(ready);
        let bits: Vec<u32> = match op {
            // A product of matrices.
            4459 => vec![0],
            148 => vec![dot(&operands[0], &operands[1])],
            154 => vec![u32::from(operands[0].iter().any(|word| word.bits != 0))],
            155 => vec![u32::from(operands[0].iter().all(|word| word.bits != 0))],
            _ => {
                let count = operands.iter().map(Vec::len).max().unwrap();
                let element = |i: usize| {
                    let at = |o: &Vec<Word>| o[if o.len() == 1 { 0 } else { i }].bits;
                    scalar(op, &operands.iter().map(at).collect::<Vec<_>>())
                };
                (0..count).map(element).collect()
            }
        };
        let word = |bits| Word { bits, ready, known };
        Value::Words(bits.into_iter().map(word).collect())
    }
}

fn dot(a: &[Word], b: &[Word]) -> u32 {
    let products = a.iter().zip(b);
    let sum: f32 = products
        .map(|(a, b)| f32::from_bits(a.bits) * f32::from_bits(b.bits))
        .sum();
    sum.to_bits()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as SPIR-V says"
)]
fn scalar(op: u32, o: &[u32]) -> u32 {
    let f = |i: usize| f32::from_bits(o[i]);
    let s = |i: usize| o[i].cast_signed();
    let number = |value: f32| value.to_bits();
    match op {
        109 => f(0) as u32,
        110 => (f(0) as i32).cast_unsigned(),
        111 => number(s(0) as f32),
        112 => number(o[0] as f32),
        113..=115 => o[0],
        126 => s(0).wrapping_neg().cast_unsigned(),
        127 => number(-f(0)),
        128 => o[0].wrapping_add(o[1]),
        129 => number(f(0) + f(1)),
        130 => o[0].wrapping_sub(o[1]),
        131 => number(f(0) - f(1)),
        132 => o[0].wrapping_mul(o[1]),
        133 | 142 => number(f(0) * f(1)),
        134 => o[0] / o[1].max(1),
        135 => (s(0) / s(1).max(1)).cast_unsigned(),
        136 => number(f(0) / f(1)),
        137 => o[0] % o[1].max(1),
        138 | 139 => (s(0) % s(1).max(1)).cast_unsigned(),
        140 | 141 => number(f(0) % f(1)),
        156 => u32::from(f(0).is_nan()),
        164 | 170 => u32::from(o[0] == o[1]),
        165 | 171 => u32::from(o[0] != o[1]),
        166 | 197 => o[0] | o[1],
        167 | 199 => o[0] & o[1],
        168 => u32::from(o[0] == 0),
        169 => o[if o[0] != 0 { 1 } else { 2 }],
        172 => u32::from(o[0] > o[1]),
        173 => u32::from(s(0) > s(1)),
        174 => u32::from(o[0] >= o[1]),
        175 => u32::from(s(0) >= s(1)),
        176 => u32::from(o[0] < o[1]),
        177 => u32::from(s(0) < s(1)),
        178 => u32::from(o[0] <= o[1]),
        179 => u32::from(s(0) <= s(1)),
        180 | 181 => u32::from(f(0) == f(1)),
        182 | 183 => u32::from(f(0) != f(1)),
        184 | 185 => u32::from(f(0) < f(1)),
        186 | 187 => u32::from(f(0) > f(1)),
        188 | 189 => u32::from(f(0) <= f(1)),
        190 | 191 => u32::from(f(0) >= f(1)),
        194 => o[0].wrapping_shr(o[1]),
        195 => s(0).wrapping_shr(o[1]).cast_unsigned(),
        196 => o[0].wrapping_shl(o[1]),
        198 => o[0] ^ o[1],
        200 => !o[0],
        1004 => number(f(0).abs()),
        1006 => number(f(0).signum()),
        1026 => number(f(0).powf(f(1))),
        1027 => number(f(0).exp()),
        1028 => number(f(0).ln()),
        1031 => number(f(0).sqrt()),
        1032 => number(1.0 / f(0).sqrt()),
        1037 => number(f(0).min(f(1))),
        1038 => o[0].min(o[1]),
        1039 => s(0).min(s(1)).cast_unsigned(),
        1040 => number(f(0).max(f(1))),
        1041 => o[0].max(o[1]),
        1042 => s(0).max(s(1)).cast_unsigned(),
        1043 => number(f(0).max(f(1)).min(f(2))),
        1044 => o[0].max(o[1]).min(o[2]),
        1045 => s(0).max(s(1)).min(s(2)).cast_unsigned(),
        1050 => number(f(0).mul_add(f(1), f(2))),
        other => panic!("instruction {other} is not known here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Matrices;
    use crate::ops::linear::Kind;
    use crate::ops::linear_matrix::LinearMatrix;
    use crate::ops::linear_skinny::{LinearSkinny, Shape};
    use crate::ops::linear_tiled::LinearTiled;

    /// The dims of a product.
    fn product(rows: u32, inputs: u32, outputs: u32) -> [u32; 8] {
        [rows, inputs / 4, outputs, 0, 0, 0, 1, 1e-12f32.to_bits()]
    }

    /// All weights of a lane are on their way before it waits, and as vectors of four.
    #[test]
    fn products_of_few_rows_have_their_weights_in_flight() {
        for (kind, inputs, outputs, weights, rounds) in [
            (Kind::Normed, 384, 1152, 12, 6),
            (Kind::Joined, 384, 384, 6, 1),
            (Kind::Normed, 384, 1536, 12, 6),
            (Kind::Joined, 1536, 384, 6, 4),
            (Kind::Bare, 384, 384, 6, 1),
        ] {
            for scratch in [16_352, 32_768, 49_152] {
                let shape = Shape::of(kind, inputs, outputs, scratch).unwrap();
                let [i, o] = [inputs, outputs].map(crate::num::to_u32);
                let kernel = LinearSkinny::new().kernel(shape);
                let trace = fly(&kernel, &product(18, i, o), [1, 0, 0], 37, &|_, _| 0);
                assert_eq!(trace.in_flight(0, "w", 4), weights);
                assert!(trace.in_flight(0, "x", 4) >= 6);
                assert_eq!(trace.not_of("w", 4) + trace.not_of("x", 4), 0);
                assert!(trace.scratch <= scratch);
                let label = format!("{} {inputs} {outputs} {scratch}", kind.entry());
                assert!(trace.rounds <= rounds, "{label}: {} rounds", trace.rounds);
            }
        }
    }

    /// The next step's loads are on their way while this one is computed.
    #[test]
    fn products_of_many_rows_load_a_step_ahead() {
        for (kind, inputs, rounds) in [
            (Kind::Bare, 384, 33),
            (Kind::Joined, 1536, 105),
            (Kind::Normed, 384, 60),
        ] {
            for scratch in [16_352, 49_152] {
                let tiled = LinearTiled::new(scratch);
                let kernel = tiled.kernel(kind);
                let dims = product(576, inputs, 384);
                let trace = fly(kernel, &dims, [1, 2, 0], 37, &|_, _| 0);
                // One step more may be loaded than there are.
                let steps = trace.loads.iter().filter(|load| load.buffer == "w");
                let steps = steps.count() / 2;
                let least = inputs as usize / 16;
                assert!(steps == least || steps == least + 1, "{steps}");
                assert_eq!(trace.not_of("w", 4) + trace.not_of("x", 4), 0);
                assert!(trace.scratch <= scratch);
                let label = format!("{} {inputs} {scratch}", kind.entry());
                assert!(trace.rounds <= rounds, "{label}: {} rounds", trace.rounds);
            }
        }
    }

    /// The same by matrix units.
    #[test]
    fn products_on_matrix_units_load_a_step_ahead() {
        let units = |side, lanes| Matrices { side, lanes };
        for (units, scratch, each) in [
            (units(16, 128), 49_152, 4),
            (units(16, 128), 32_768, 2),
            (units(8, 128), 16_352, 2),
        ] {
            let matrix = LinearMatrix::new(units, scratch, true).unwrap();
            for (kind, inputs) in [(Kind::Bare, 384), (Kind::Joined, 1536)] {
                let dims = product(576, inputs, 384);
                for low in [false, true] {
                    let kernel = matrix.kernel(kind, low);
                    let trace = fly(&kernel, &dims, [1, 2, 0], 37, &|_, _| 0);
                    let halves = if low { 2 * each } else { each };
                    assert_eq!(trace.in_flight(1, "x", 4), each);
                    assert_eq!(trace.in_flight(1, "halves", 4), halves);
                    assert_eq!(trace.not_of("halves", 4) + trace.not_of("x", 4), 0);
                    assert!(trace.scratch <= scratch);
                    let steps = trace.loads.iter().filter(|load| load.buffer == "x");
                    let steps = steps.count() / each;
                    let label = format!("{} {inputs} {low}", kind.entry());
                    let rounds = trace.rounds as usize;
                    assert!(
                        rounds <= steps + 9,
                        "{label}: {rounds} rounds, {steps} steps"
                    );
                }
            }
        }
        assert!(LinearMatrix::new(units(16, 128), 16_352, true).is_none());
    }

    const HEAD: &str = "
        struct Dims { n: u32 }
        @group(0) @binding(0) var<uniform> dims: Dims;
        @group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
        @group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
        var<workgroup> kept: array<vec4<f32>, 64>;
        @compute @workgroup_size(8)
        fn forward(@builtin(local_invocation_index) lane: u32) {";

    fn trace(body: &str) -> LaneTrace {
        let shader = crate::device::Shader {
            name: "sketch",
            source: format!("{HEAD}{body}}}").leak(),
        };
        let kernel = Kernel::new(Box::leak(Box::new(shader)), "forward", &[]);
        fly(&kernel, &[8], [0, 0, 0], 3, &|_, _| 0)
    }

    #[test]
    fn a_load_that_is_kept_at_once_flies_alone() {
        let one =
            trace("for (var n = 0u; n < 8u; n += 1u) { kept[n * 8u + lane] = x[n * 8u + lane]; }");
        assert_eq!(one.rounds, 8);
        assert_eq!(one.in_flight(0, "x", 4), 1);
        assert_eq!(one.scratch, 64 * 16);
        let together = trace(
            "var v: array<vec4<f32>, 8>;
            for (var n = 0u; n < 8u; n += 1u) { v[n] = x[n * 8u + lane]; }
            for (var n = 0u; n < 8u; n += 1u) { kept[n * 8u + lane] = v[n]; }",
        );
        assert_eq!(together.rounds, 1);
        assert_eq!(together.in_flight(0, "x", 4), 8);
        assert_eq!(together.not_of("x", 4), 0);
        assert_eq!(together.not_of("x", 1), 8);
    }

    /// A sum in a loop of 8 turns is one round where the compiler knows that it is 8, and 8 rounds
    /// where it does not.
    #[test]
    fn loops_of_unknown_length_wait_for_each_turn() {
        let sum = |end: &str| {
            trace(&format!(
                "var sum = vec4<f32>();
                for (var n = 0u; n < {end}; n += 1u) {{ sum += x[n * 8u + lane]; }}
                y[lane] = sum;"
            ))
        };
        assert_eq!((sum("8u").rounds, sum("8u").in_flight(0, "x", 4)), (1, 8));
        let unknown = sum("dims.n");
        assert_eq!((unknown.rounds, unknown.in_flight(0, "x", 4)), (8, 1));
    }

    #[test]
    fn an_address_waits_for_its_index() {
        let chained = trace("y[lane] = x[u32(x[u32(x[lane].x)].x)];");
        assert_eq!(chained.rounds, 3);
        let numbers: Vec<u32> = chained.loads.iter().map(|load| load.round).collect();
        assert_eq!(numbers, [0, 1, 2]);
    }
}
