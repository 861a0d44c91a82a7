//! LibTorch's stable C interface, found by name in the library that `import torch` has loaded: nothing of torch is
//! linked or compiled against, so one build serves every version from 2.10 on.
//!
//! All `unsafe` code of the bindings is here. What torch hands over is owned by [`Tensor`] and [`Stack`]; errors leave
//! as a C++ exception, which is what the dispatcher expects of a kernel.

use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use sparrow_kernels::{Bitmap, BitmapError, BitmapParts, SparseKvError, SparseKvParts, SparseRows};

use super::fault::{Fault, Result};
use super::scalar_type::ScalarType;

/// A tensor, a string or a library of torch.
type Handle = *mut c_void;
/// A kernel as the dispatcher calls it: arguments and results, one word each, and how many there are of both.
type Boxed = unsafe extern "C-unwind" fn(*mut u64, u64, u64);
type Throw = unsafe extern "C-unwind" fn(*mut c_void, *mut c_void, *mut c_void) -> !;

/// The layout of arguments that torch is asked for, that of 2.10: major, minor and patch, a byte each from the top.
const INTERFACE: u64 = 2 << 56 | 10 << 48;
/// Bytes of a `std::runtime_error`: a vtable and a string.
const RUNTIME_ERROR_BYTES: usize = 16;

/// The functions of LibTorch and of the C++ library that are used.
struct Symbols {
    delete_tensor: unsafe extern "C" fn(Handle) -> i32,
    sizes: unsafe extern "C" fn(Handle, *mut *const i64) -> i32,
    strides: unsafe extern "C" fn(Handle, *mut *const i64) -> i32,
    dim: unsafe extern "C" fn(Handle, *mut i64) -> i32,
    dtype: unsafe extern "C" fn(Handle, *mut i32) -> i32,
    data: unsafe extern "C" fn(Handle, *mut *const c_void) -> i32,
    data_mut: unsafe extern "C" fn(Handle, *mut *mut c_void) -> i32,
    empty: unsafe extern "C" fn(i64, *const i64, *const i64, i32, i32, i32, *mut Handle) -> i32,
    threads: unsafe extern "C" fn(*mut u32) -> i32,
    string_data: unsafe extern "C" fn(Handle, *mut *const c_char) -> i32,
    string_length: unsafe extern "C" fn(Handle, *mut usize) -> i32,
    delete_string: unsafe extern "C" fn(Handle) -> i32,
    delete_optional: unsafe extern "C" fn(*mut u64),
    allocate_exception: unsafe extern "C" fn(usize) -> *mut c_void,
    construct_error: unsafe extern "C" fn(*mut c_void, *const c_char),
    /// torch's number of each of [`ScalarType::KNOWN`].
    scalar_types: [i32; ScalarType::KNOWN.len()],
    cpu: i32,
}

/// How a `std::runtime_error` is thrown: the function, the type and its destructor.
struct Thrower {
    throw: Throw,
    kind: *mut c_void,
    destructor: *mut c_void,
}

// SAFETY: the addresses are those of functions and of constant data of libraries that stay loaded.
unsafe impl Send for Thrower {}
// SAFETY: as above; nothing is written.
unsafe impl Sync for Thrower {}

static SYMBOLS: OnceLock<Symbols> = OnceLock::new();
static THROWER: OnceLock<Thrower> = OnceLock::new();

/// A library that the process has loaded.
struct Library(*mut c_void);

impl Library {
    fn loaded(path: &str) -> std::result::Result<Self, String> {
        let name = CString::new(path).map_err(|_| format!("{path:?} is no path"))?;
        // SAFETY: the name ends with zero, and nothing new is loaded.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
        if handle.is_null() { Err(format!("{path} is not loaded")) } else { Ok(Library(handle)) }
    }

    fn address(&self, name: &CStr) -> std::result::Result<*mut c_void, String> {
        // SAFETY: the handle is that of a loaded library, the name ends with zero.
        let address = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        if address.is_null() {
            return Err(format!(
                "{} is not there: Sparrow's operators need torch 2.10 or later",
                name.to_string_lossy()
            ));
        }
        Ok(address)
    }

    /// The function of this name.
    ///
    /// # Safety
    /// `F` must be its type.
    unsafe fn function<F: Copy>(&self, name: &CStr) -> std::result::Result<F, String> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) }
        let address = self.address(name)?;
        // SAFETY: an address of a function is a function pointer of its type, which the caller vouches for.
        Ok(unsafe { std::mem::transmute_copy(&address) })
    }

    /// What a function without arguments returns: torch's numbers of types.
    fn number(&self, name: &CStr) -> std::result::Result<i32, String> {
        // SAFETY: all functions of torch with such a name have this type.
        let number: unsafe extern "C" fn() -> i32 = unsafe { self.function(name)? };
        // SAFETY: as above.
        Ok(unsafe { number() })
    }
}

impl Symbols {
    fn find(torch: &Library, cpp: &Library) -> std::result::Result<Self, String> {
        let mut scalar_types = [0; ScalarType::KNOWN.len()];
        for (number, (_, name)) in scalar_types.iter_mut().zip(ScalarType::KNOWN) {
            let function = format!("aoti_torch_dtype_{name}");
            *number = torch.number(&CString::new(function).map_err(|e| e.to_string())?)?;
        }
        // SAFETY: the types are those of torch's and the C++ runtime's headers. Of an optional argument torch's function returns a
        // number beside, which is of no use here.
        unsafe {
            Ok(Symbols {
                delete_tensor: torch.function(c"aoti_torch_delete_tensor_object")?,
                sizes: torch.function(c"aoti_torch_get_sizes")?,
                strides: torch.function(c"aoti_torch_get_strides")?,
                dim: torch.function(c"aoti_torch_get_dim")?,
                dtype: torch.function(c"aoti_torch_get_dtype")?,
                data: torch.function(c"torch_get_const_data_ptr")?,
                data_mut: torch.function(c"torch_get_mutable_data_ptr")?,
                empty: torch.function(c"aoti_torch_empty_strided")?,
                threads: torch.function(c"torch_get_num_threads")?,
                string_data: torch.function(c"torch_string_c_str")?,
                string_length: torch.function(c"torch_string_length")?,
                delete_string: torch.function(c"torch_delete_string")?,
                // From 2.13 on torch has a function for it; before that they come from C++'s new.
                delete_optional: torch.function(c"torch_delete_stable_ivalue").or_else(|_| cpp.function(c"_ZdlPv"))?,
                allocate_exception: cpp.function(c"__cxa_allocate_exception")?,
                construct_error: cpp.function(c"_ZNSt13runtime_errorC1EPKc")?,
                scalar_types,
                cpu: torch.number(c"aoti_torch_device_type_cpu")?,
            })
        }
    }
}

/// The functions; operators run only after [`register`] has found them.
fn symbols() -> Result<&'static Symbols> {
    SYMBOLS.get().ok_or_else(|| Fault::Internal("torch's functions were not looked up".into()))
}

fn succeeded(code: i32, what: &str) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Fault::Internal(format!("torch failed to {what}"))) }
}

/// The number of threads of torch's own operators.
pub fn torch_threads() -> Result<usize> {
    let mut threads = 0;
    // SAFETY: the function writes one number.
    succeeded(unsafe { (symbols()?.threads)(&raw mut threads) }, "tell its number of threads")?;
    Ok(threads as usize)
}

/// A tensor that this value keeps alive. It is in the memory of the CPU: those of other devices go to kernels of theirs.
pub struct Tensor {
    handle: Handle,
    dim: usize,
    sizes: *const i64,
    strides: *const i64,
    scalar_type: ScalarType,
    data: *const u8,
}

impl Drop for Tensor {
    fn drop(&mut self) {
        if let Some(symbols) = SYMBOLS.get() {
            // SAFETY: the handle is owned, and not used again.
            unsafe { (symbols.delete_tensor)(self.handle) };
        }
    }
}

impl Tensor {
    /// Takes over a tensor.
    ///
    /// # Safety
    /// The handle must be one of torch's, and nobody else may delete it.
    unsafe fn own(handle: Handle) -> Result<Self> {
        let symbols = symbols()?;
        let (mut dim, mut number) = (0, 0);
        let mut tensor = Tensor {
            handle,
            dim: 0,
            sizes: std::ptr::dangling(),
            strides: std::ptr::dangling(),
            scalar_type: ScalarType::Other,
            data: std::ptr::dangling(),
        };
        let mut data = std::ptr::null();
        // SAFETY: the handle is a tensor's; each function writes what its last argument points to.
        let code = unsafe {
            (symbols.dim)(handle, &raw mut dim)
                | (symbols.sizes)(handle, &raw mut tensor.sizes)
                | (symbols.strides)(handle, &raw mut tensor.strides)
                | (symbols.dtype)(handle, &raw mut number)
                | (symbols.data)(handle, &raw mut data)
        };
        succeeded(code, "describe a tensor")?;
        let known = symbols.scalar_types.iter().position(|&known| known == number);
        tensor.scalar_type = known.map_or(ScalarType::Other, |i| ScalarType::KNOWN[i].0);
        tensor.dim = dim as usize;
        if !data.is_null() {
            tensor.data = data.cast();
        }
        Ok(tensor)
    }

    /// The shape.
    pub fn sizes(&self) -> &[i64] {
        // SAFETY: torch keeps as many sizes as the tensor has dimensions, as long as the tensor.
        if self.dim == 0 { &[] } else { unsafe { std::slice::from_raw_parts(self.sizes, self.dim) } }
    }

    /// Elements from one to the next along each dimension.
    pub fn strides(&self) -> &[i64] {
        // SAFETY: as of the sizes.
        if self.dim == 0 { &[] } else { unsafe { std::slice::from_raw_parts(self.strides, self.dim) } }
    }

    /// The element type.
    pub fn scalar_type(&self) -> ScalarType {
        self.scalar_type
    }

    /// The memory from the first element to the end of the last one, with what lies between them.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: torch guarantees that every element lies within the tensor's storage, and callers of an operator that
        // nothing writes to its arguments meanwhile.
        unsafe { std::slice::from_raw_parts(self.data, self.span()) }
    }

    fn span(&self) -> usize {
        if self.sizes().contains(&0) {
            return 0;
        }
        let last: i64 = self.sizes().iter().zip(self.strides()).map(|(size, stride)| (size - 1) * stride).sum();
        (last as usize + 1) * self.scalar_type.size()
    }

    /// The memory of two tensors as one, if the second begins `distance` bytes after the first and both reach over the
    /// same rows, at least two: then they are columns of one table, which no byte between them is outside of.
    pub fn joined<'a>(&'a self, other: &'a Tensor, distance: usize) -> Option<&'a [u8]> {
        let (this, that) = (self.bytes(), other.bytes());
        let begins = this.as_ptr().wrapping_add(distance) == that.as_ptr();
        if !begins || this.len() <= distance || that.len() + distance < this.len() {
            return None;
        }
        // SAFETY: both are memory of torch, which overlaps and so is of one storage, and the sum ends where the second does.
        Some(unsafe { std::slice::from_raw_parts(self.data, distance + that.len()) })
    }

    /// A new contiguous tensor; what it holds is arbitrary.
    pub fn empty(sizes: &[i64], scalar_type: ScalarType) -> Result<TensorMut> {
        let symbols = symbols()?;
        let known = ScalarType::KNOWN.iter().position(|(known, _)| *known == scalar_type);
        let number = known.map(|i| symbols.scalar_types[i]);
        let number = number.ok_or_else(|| Fault::Internal("a tensor of an unknown type".into()))?;
        let mut strides = vec![1; sizes.len()];
        for i in (1..sizes.len()).rev() {
            strides[i - 1] = strides[i] * sizes[i].max(1);
        }
        let mut handle = std::ptr::null_mut();
        let (dim, sizes, strides) = (sizes.len() as i64, sizes.as_ptr(), strides.as_ptr());
        // SAFETY: both arrays have `dim` numbers, and one handle is written.
        let code = unsafe { (symbols.empty)(dim, sizes, strides, number, symbols.cpu, 0, &raw mut handle) };
        succeeded(code, "allocate the result: out of memory?")?;
        // SAFETY: the tensor is new.
        unsafe { Tensor::own(handle)? }.written()
    }

    /// To be written to.
    fn written(self) -> Result<TensorMut> {
        let mut data = std::ptr::null_mut();
        // SAFETY: the handle is a tensor's; one pointer is written.
        succeeded(unsafe { (symbols()?.data_mut)(self.handle, &raw mut data) }, "let a tensor be written to")?;
        Ok(TensorMut { tensor: self, data: data.cast() })
    }
}

/// A tensor that is new, or that the schema says is written to.
pub struct TensorMut {
    tensor: Tensor,
    data: *mut u8,
}

impl std::ops::Deref for TensorMut {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.tensor
    }
}

impl TensorMut {
    /// Its memory.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let length = self.tensor.span();
        if length == 0 {
            return &mut [];
        }
        // SAFETY: as of `Tensor::bytes`; the tensor is borrowed mutably, and shares no memory with another argument, see
        // `Stack::tensor_mut`.
        unsafe { std::slice::from_raw_parts_mut(self.data, length) }
    }

    /// Refuses arguments that share memory with what is written to.
    pub fn alone(&self, name: &str, others: &[(&str, &Tensor)]) -> Result<()> {
        let range = |t: &Tensor| t.data as usize..t.data as usize + t.span();
        let this = range(self);
        for (other, t) in others {
            let that = range(t);
            if this.start < that.end && that.start < this.end {
                return Err(Fault::Shape(format!("{name}: expected memory of its own, found that of {other}")));
            }
        }
        Ok(())
    }

    /// It is finished.
    pub fn done(self) -> Tensor {
        self.tensor
    }
}

/// The numbers in these bytes, if they are aligned.
pub fn as_floats(bytes: &[u8]) -> Option<&[f32]> {
    // SAFETY: every four bytes are a valid f32.
    let (before, floats, after) = unsafe { bytes.align_to() };
    (before.is_empty() && after.is_empty()).then_some(floats)
}

/// As [`as_floats`].
pub fn as_floats_mut(bytes: &mut [u8]) -> Option<&mut [f32]> {
    // SAFETY: every four bytes are a valid f32, and the other way round.
    let (before, floats, after) = unsafe { bytes.align_to_mut() };
    (before.is_empty() && after.is_empty()).then_some(floats)
}

/// A bitmap whose bits are not counted against its offsets, which whoever called the operator vouches for.
///
/// # Errors
/// If the offsets do not ascend from 0 to the number of stored elements: all that can be seen without reading the mask.
pub fn trusted_bitmap(parts: BitmapParts<'_>) -> std::result::Result<Bitmap<'_>, BitmapError> {
    let (first, stored) = (parts.offsets.first().copied().unwrap_or(0), parts.offsets.last().copied().unwrap_or(0));
    if first != 0 || !parts.offsets.is_sorted() {
        return Err(BitmapError::Offset { row: 0, expected: 0, found: first.max(stored) });
    }
    // SAFETY: the lengths are those of checked shapes; `check_invariants=False` is the caller's word that `pack` made these
    // tensors, or that a call without it accepted them, and that they were not changed since.
    Ok(unsafe { Bitmap::new_unchecked(parts) })
}

/// A sparse cache whose bits are not counted, which whoever called the operator vouches for.
///
/// # Errors
/// If a length does not fit.
pub fn trusted_cache(parts: SparseKvParts<'_>) -> std::result::Result<SparseRows<'_>, SparseKvError> {
    // SAFETY: `check_invariants=False` is the caller's word that `pack_kv` made these blocks.
    unsafe { SparseRows::new_unchecked(parts) }
}

/// The arguments of a call, taken in order, and then its results.
///
/// Torch hands all arguments over, so an operator takes every one of them before it does anything else.
pub struct Stack {
    slots: *mut u64,
    arguments: usize,
    results: usize,
    taken: usize,
    given: usize,
}

impl Stack {
    fn take(&mut self) -> Result<u64> {
        if self.taken == self.arguments {
            return Err(Fault::Internal("the operator has fewer arguments".into()));
        }
        // SAFETY: torch gives as many words as there are arguments, and this one is not taken yet.
        let word = unsafe { self.slots.add(self.taken).read() };
        self.taken += 1;
        Ok(word)
    }

    /// A `Tensor`.
    pub fn tensor(&mut self) -> Result<Tensor> {
        let word = self.take()?;
        // SAFETY: by the schema this argument is a tensor, which the kernel owns.
        unsafe { Tensor::own(word as Handle) }
    }

    /// A `Tensor(a!)`. Before its memory is borrowed, [`TensorMut::alone`] must have compared it with the other arguments.
    pub fn tensor_mut(&mut self) -> Result<TensorMut> {
        self.tensor()?.written()
    }

    /// The word of an optional argument, if it is given.
    fn optional(&mut self) -> Result<Option<u64>> {
        let place = self.take()? as *mut u64;
        if place.is_null() {
            return Ok(None);
        }
        // SAFETY: by the schema this argument is optional: a word that the kernel owns, and frees as torch wants.
        unsafe {
            let word = place.read();
            (symbols()?.delete_optional)(place);
            Ok(Some(word))
        }
    }

    /// A `Tensor?`.
    pub fn optional_tensor(&mut self) -> Result<Option<Tensor>> {
        // SAFETY: as of `tensor`.
        self.optional()?.map(|word| unsafe { Tensor::own(word as Handle) }).transpose()
    }

    /// A `bool`.
    pub fn bool(&mut self) -> Result<bool> {
        Ok(self.take()? as u8 != 0)
    }

    /// A `float`.
    pub fn float(&mut self) -> Result<f64> {
        Ok(f64::from_bits(self.take()?))
    }

    /// A `float?`.
    pub fn optional_float(&mut self) -> Result<Option<f64>> {
        Ok(self.optional()?.map(f64::from_bits))
    }

    /// A `str`.
    pub fn string(&mut self) -> Result<String> {
        let handle = self.take()? as Handle;
        let symbols = symbols()?;
        let (mut data, mut length) = (std::ptr::null(), 0);
        // SAFETY: by the schema this argument is a string, which the kernel owns: read, copied, and deleted.
        unsafe {
            let code = (symbols.string_data)(handle, &raw mut data) | (symbols.string_length)(handle, &raw mut length);
            let text = if code == 0 && length > 0 {
                String::from_utf8_lossy(std::slice::from_raw_parts(data.cast(), length)).into_owned()
            } else {
                String::new()
            };
            (symbols.delete_string)(handle);
            succeeded(code, "read a string")?;
            Ok(text)
        }
    }

    /// The next result. All arguments are taken before the first.
    pub fn give(&mut self, tensor: Tensor) -> Result<()> {
        if self.taken < self.arguments || self.given == self.results {
            return Err(Fault::Internal("a result before its time".into()));
        }
        // SAFETY: torch has room for all results where the arguments were, which are taken.
        unsafe { self.slots.add(self.given).write(tensor.handle as u64) };
        self.given += 1;
        std::mem::forget(tensor);
        Ok(())
    }
}

/// An operator that torch can call.
pub trait Operator {
    /// Without the namespace.
    const NAME: &'static CStr;
    /// In torch's notation.
    const SCHEMA: &'static CStr;

    /// Takes the arguments, and gives the results.
    ///
    /// # Errors
    /// If an argument is not what it must be.
    fn call(stack: &mut Stack) -> Result<()>;
}

/// Everything of a call that may fail or must be dropped: null, or the text of an error for [`exception`].
#[inline(never)]
extern "C" fn guarded<O: Operator>(slots: *mut u64, arguments: u64, results: u64) -> *mut c_char {
    let mut stack = Stack { slots, arguments: arguments as usize, results: results as usize, taken: 0, given: 0 };
    match catch_unwind(AssertUnwindSafe(|| O::call(&mut stack))) {
        Ok(Ok(())) => std::ptr::null_mut(),
        Ok(Err(fault)) => message(&fault, O::NAME),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            message(&Fault::Internal(text.to_owned()), O::NAME)
        }
    }
}

#[cold]
fn message(fault: &Fault, operator: &CStr) -> *mut c_char {
    let text = format!("{fault} (sparrow::{})", operator.to_string_lossy()).replace('\0', "");
    CString::new(text).map_or(std::ptr::null_mut(), CString::into_raw)
}

/// The exception with this text; frees the text.
#[inline(never)]
extern "C" fn exception(message: *mut c_char) -> *mut c_void {
    let Some(symbols) = SYMBOLS.get() else { std::process::abort() };
    // SAFETY: the text is that of `guarded`; the exception has room for a std::runtime_error, which copies it.
    unsafe {
        let exception = (symbols.allocate_exception)(RUNTIME_ERROR_BYTES);
        (symbols.construct_error)(exception, message);
        drop(CString::from_raw(message));
        exception
    }
}

/// What torch calls. It holds nothing that is dropped, so its frame has no landing pad: a library that is linked
/// against another unwinder than torch's could not enter one.
unsafe extern "C-unwind" fn boxed<O: Operator>(slots: *mut u64, arguments: u64, results: u64) {
    let message = guarded::<O>(slots, arguments, results);
    if !message.is_null() {
        let exception = exception(message);
        if let Some(Thrower { throw, kind, destructor }) = THROWER.get() {
            // SAFETY: the exception is a std::runtime_error, whose type and destructor these are.
            unsafe { throw(exception, *kind, *destructor) }
        }
    }
}

/// An operator as it is registered.
pub struct Registration {
    name: &'static CStr,
    schema: &'static CStr,
    kernel: Boxed,
}

impl Registration {
    /// That of `O`.
    pub const fn of<O: Operator>() -> Self {
        Registration { name: O::NAME, schema: O::SCHEMA, kernel: boxed::<O> }
    }
}

/// Defines the operators as `sparrow::…` in torch's dispatcher, and their kernels for the CPU. `path` is that of the loaded
/// `libtorch_cpu.so`.
///
/// # Errors
/// If torch is not loaded, lacks a function, or has such operators already.
pub fn register(path: &str, operators: &[Registration]) -> std::result::Result<(), String> {
    if SYMBOLS.get().is_some() {
        return Ok(());
    }
    let (torch, cpp) = (Library::loaded(path)?, Library::loaded("libstdc++.so.6")?);
    let found = Symbols::find(&torch, &cpp)?;
    type Text = *const c_char;
    type Fragment = unsafe extern "C" fn(Text, Text, u32, *mut Handle) -> i32;
    type Implementations = unsafe extern "C" fn(Text, Text, Text, u32, *mut Handle) -> i32;
    type Define = unsafe extern "C" fn(Handle, Text) -> i32;
    type Implement = unsafe extern "C" fn(Handle, Text, Boxed, u64) -> i32;
    // SAFETY: the types are those of the headers.
    let (thrower, fragment, implementations, define, implement) = unsafe {
        let thrower = Thrower {
            throw: cpp.function(c"__cxa_throw")?,
            kind: cpp.address(c"_ZTISt13runtime_error")?,
            destructor: cpp.address(c"_ZNSt13runtime_errorD1Ev")?,
        };
        let fragment: Fragment = torch.function(c"aoti_torch_library_init_fragment")?;
        let implementations: Implementations = torch.function(c"aoti_torch_library_init_impl")?;
        let define: Define = torch.function(c"aoti_torch_library_def")?;
        let implement: Implement = torch.function(c"torch_library_impl")?;
        (thrower, fragment, implementations, define, implement)
    };
    if SYMBOLS.set(found).is_err() || THROWER.set(thrower).is_err() {
        return Ok(());
    }
    let (space, file) = (c"sparrow".as_ptr(), c"sparrow".as_ptr());
    let (mut definitions, mut kernels) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: all texts end with zero; the libraries of operators are never deleted, so that these stay defined.
    unsafe {
        if fragment(space, file, 0, &raw mut definitions) != 0 {
            return Err("torch refuses the namespace sparrow".into());
        }
        if implementations(space, c"CPU".as_ptr(), file, 0, &raw mut kernels) != 0 {
            return Err("torch refuses kernels of sparrow for the CPU".into());
        }
        for Registration { name, schema, kernel } in operators {
            let code = define(definitions, schema.as_ptr()) | implement(kernels, name.as_ptr(), *kernel, INTERFACE);
            if code != 0 {
                return Err(format!("torch refuses sparrow::{}", schema.to_string_lossy()));
            }
        }
    }
    Ok(())
}
