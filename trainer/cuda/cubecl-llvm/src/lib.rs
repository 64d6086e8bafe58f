//! The names that cubecl-cuda 0.11.3 takes from cubecl-llvm, without LLVM behind them.
//!
//! cubecl-cuda can compile its kernels in two ways: through LLVM, which cubecl-llvm downloads while
//! it is built, or as CUDA C++ through NVRTC, the compiler that belongs to NVIDIA's driver packages
//! (cubecl-cuda's feature `cpp`). The trainer takes the second way; this crate lets it be built
//! without the first. Whatever would need LLVM fails with an error that says so.

/// What is asked of the compiler for NVIDIA's assembly.
pub mod nvptx {
    /// Versions of that assembly.
    pub mod ptx_version {
        use core::fmt;

        /// A version to write. There is none: NVRTC chooses its own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// None, for every driver.
            pub fn for_driver(_: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {}
            }
        }
    }
}

/// What the compilers have in common.
pub mod shared {
    /// What a compiler cannot do of what a device can.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// The kind of assembly.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA's.
            Nvptx,
        }

        /// Takes nothing from `properties`: CUDA C++ can do what the device can.
        pub fn restrict_features(_: &mut DeviceProperties, _: GpuTarget) {}
    }
}

use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_environment::backtrace::BackTrace;
use cubecl_server::compiler::CompilationError;
use cubecl_server::kernel::BufferIOAttr;

/// The machine to compile for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Nvptx,
}

/// The compiler that is not here.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// The machine to compile for.
    pub target: LlvmTarget,
}

/// Options of the compiler.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// Name of a processor.
    pub arch: Option<String>,
    /// Generation of the GPU.
    pub sm_arch: Option<SmArch>,
    /// Version of the assembly.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// Whether parameters are passed as grid constants.
    pub grid_constants: bool,
    /// Whether the compiler's steps are written down.
    pub dump: bool,
}

/// A compiled kernel.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// Assembly, ending in zero.
    pub ptx: Vec<core::ffi::c_char>,
    /// Name of the kernel in it.
    pub entrypoint: String,
    /// What the assembly was made from.
    pub ir: String,
    /// Shared memory of a block, in bytes.
    pub shared_memory_size: usize,
    /// How the kernel uses each buffer.
    pub io: Vec<BufferIOAttr>,
}

/// What the compiler makes.
#[derive(Clone, Debug)]
pub enum PlironArtifact {
    /// Code for the processor.
    Jit,
    /// Code for an NVIDIA GPU.
    NvptxCode(NvptxModule),
}

impl PlironCompiler {
    /// Compiles nothing.
    ///
    /// # Errors
    /// Always.
    pub fn compile(
        &mut self,
        _: KernelDefinition,
        _: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: "built without LLVM; cubecl-cuda's feature `cpp` compiles with NVRTC".into(),
            backtrace: BackTrace::capture(),
        })
    }

    /// Name of the compiler's language.
    pub fn lang_tag(&self) -> &'static str {
        "none"
    }
}
