/* The C API of TensorFlow Lite, as far as the crate tflitec calls it, on top of
 * LiteRT: the library that the PyPI package ai-edge-litert carries on x86-64
 * and aarch64 exports its own API only. XNNPACK is what runs the network.
 *
 * Built by library.sh. The declarations of LiteRT are those of the version
 * named here; another version of the library may lay its structs out otherwise.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/lite/c/c_api.h"

#define VERSION "LiteRT 2.3.0"

/* LiteRT 2.3.0. Every function returns 0 when it succeeds. */

enum { ON_CPU = 1, LOCK_TO_READ = 0, LOCK_TO_WRITE = 1, PER_TENSOR = 1 };

typedef struct {
  unsigned rank : 7;
  unsigned has_strides : 1;
  int32_t sizes[8];
  uint32_t strides[8];
} Layout;

typedef struct {
  int element_type; /* numbered as TfLiteType */
  Layout layout;
} TensorType;

typedef struct {
  float scale;
  int64_t zero_point;
} Affine;

typedef struct {
  int tag;
  struct {
    int type;
    union {
      int64_t integer;
      const char* text;
    };
  } value;
} Setting;

enum { OF_INTEGER = 2, ACCELERATORS = 24, LEAST_SEVERITY = 25, ERRORS = 3 };

typedef struct LiteRtEnvironmentT* Environment;
typedef struct LiteRtModelT* Network;
typedef struct LiteRtSignatureT* Signature;
typedef struct LiteRtTensorT* Description;
typedef struct LiteRtOptionsT* Options;
typedef struct LiteRtOpaqueOptionsT* OpaqueOptions;
typedef struct LiteRtCompiledModelT* Compiled;
typedef struct LiteRtTensorBufferRequirementsT* Requirements;
typedef struct LiteRtTensorBufferT* Buffer;

int LiteRtCreateEnvironment(int count, const Setting*, Environment*);
int LiteRtCreateModelFromFile(Environment, const char* path, Network*);
int LiteRtCreateModelFromBuffer(Environment, const void* bytes, size_t size, Network*);
void LiteRtDestroyModel(Network);
int LiteRtGetModelSignature(Network, size_t index, Signature*);
int LiteRtGetNumSignatureInputs(Signature, size_t*);
int LiteRtGetNumSignatureOutputs(Signature, size_t*);
int LiteRtGetSignatureInputTensorByIndex(Signature, size_t, Description*);
int LiteRtGetSignatureOutputTensorByIndex(Signature, size_t, Description*);
int LiteRtGetTensorName(Description, const char**);
int LiteRtGetRankedTensorType(Description, TensorType*);
int LiteRtGetQuantizationTypeId(Description, int*);
int LiteRtGetPerTensorQuantization(Description, Affine*);
int LiteRtCreateOptions(Options*);
void LiteRtDestroyOptions(Options);
int LiteRtSetOptionsHardwareAccelerators(Options, int);
int LiteRtCreateOpaqueOptions(const char* of, void* payload, void (*release)(void*), OpaqueOptions*);
void LiteRtDestroyOpaqueOptions(OpaqueOptions);
int LiteRtAddOpaqueOptions(Options, OpaqueOptions);
int LiteRtCreateCompiledModel(Environment, Network, Options, Compiled*);
void LiteRtDestroyCompiledModel(Compiled);
int LiteRtRunCompiledModel(Compiled, size_t signature, size_t, Buffer* inputs, size_t, Buffer* outputs);
int LiteRtGetCompiledModelInputBufferRequirements(Compiled, size_t signature, size_t, Requirements*);
int LiteRtGetCompiledModelOutputBufferRequirements(Compiled, size_t signature, size_t, Requirements*);
int LiteRtCreateManagedTensorBufferFromRequirements(Environment, const TensorType*, Requirements, Buffer*);
void LiteRtDestroyTensorBuffer(Buffer);
int LiteRtGetTensorBufferPackedSize(Buffer, size_t*);
int LiteRtLockTensorBuffer(Buffer, void** bytes, int mode);
int LiteRtUnlockTensorBuffer(Buffer);

struct TfLiteModel {
  Network network;
};

struct TfLiteInterpreterOptions {
  int32_t threads;
};

struct TfLiteTensor {
  const char* name;
  TensorType type;
  Affine affine;
  Buffer buffer; /* none until the tensors are allocated */
  void* bytes;
  size_t size;
};

struct TfLiteInterpreter {
  Compiled compiled;
  size_t inputs, outputs;
  TfLiteTensor* tensors; /* the inputs, then the outputs */
  Buffer* buffers;       /* in the same order */
};

/* One environment for the process; it is never given back. It says nothing
 * but errors, and looks for no GPU. */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static Environment shared;

static void create_environment(void) {
  static const Setting settings[] = {
      {LEAST_SEVERITY, {OF_INTEGER, {ERRORS}}},
      {ACCELERATORS, {OF_INTEGER, {ON_CPU}}},
  };
  if (LiteRtCreateEnvironment(2, settings, &shared)) shared = NULL;
}

static Environment environment(void) {
  pthread_once(&once, create_environment);
  return shared;
}

const char* TfLiteVersion(void) { return VERSION; }

/* Models */

static TfLiteModel* model(Network network) {
  TfLiteModel* model = malloc(sizeof *model);
  if (model)
    model->network = network;
  else
    LiteRtDestroyModel(network);
  return model;
}

TfLiteModel* TfLiteModelCreate(const void* bytes, size_t size) {
  Network network;
  if (!environment() || LiteRtCreateModelFromBuffer(environment(), bytes, size, &network)) return NULL;
  return model(network);
}

TfLiteModel* TfLiteModelCreateFromFile(const char* path) {
  Network network;
  if (!environment() || LiteRtCreateModelFromFile(environment(), path, &network)) return NULL;
  return model(network);
}

void TfLiteModelDelete(TfLiteModel* model) {
  if (!model) return;
  LiteRtDestroyModel(model->network);
  free(model);
}

/* Options */

TfLiteInterpreterOptions* TfLiteInterpreterOptionsCreate(void) {
  return calloc(1, sizeof(TfLiteInterpreterOptions));
}

void TfLiteInterpreterOptionsDelete(TfLiteInterpreterOptions* options) { free(options); }

void TfLiteInterpreterOptionsSetNumThreads(TfLiteInterpreterOptions* options, int32_t threads) {
  options->threads = threads;
}

/* Interpreters */

/* The number of threads goes to XNNPACK as a line of TOML. */
static int set_threads(Options options, int32_t threads) {
  char line[32];
  OpaqueOptions xnnpack;
  if (threads <= 0) return 0;
  snprintf(line, sizeof line, "num_threads = %d\n", (int)threads);
  char* payload = strdup(line);
  if (!payload) return 1;
  if (LiteRtCreateOpaqueOptions("xnnpack", payload, free, &xnnpack)) {
    free(payload);
    return 1;
  }
  if (LiteRtAddOpaqueOptions(options, xnnpack)) {
    LiteRtDestroyOpaqueOptions(xnnpack);
    return 1;
  }
  return 0;
}

static Compiled compile(Network network, int32_t threads) {
  Options options;
  Compiled compiled = NULL;
  if (LiteRtCreateOptions(&options)) return NULL;
  if (LiteRtSetOptionsHardwareAccelerators(options, ON_CPU) || set_threads(options, threads) ||
      LiteRtCreateCompiledModel(environment(), network, options, &compiled))
    compiled = NULL;
  LiteRtDestroyOptions(options);
  return compiled;
}

static int describe(Description description, TfLiteTensor* tensor) {
  int kind = 0;
  if (LiteRtGetTensorName(description, &tensor->name) ||
      LiteRtGetRankedTensorType(description, &tensor->type))
    return 1;
  if (LiteRtGetQuantizationTypeId(description, &kind) || kind != PER_TENSOR) return 0;
  return LiteRtGetPerTensorQuantization(description, &tensor->affine);
}

static int describe_all(Network network, TfLiteInterpreter* interpreter) {
  Signature signature;
  if (LiteRtGetModelSignature(network, 0, &signature) ||
      LiteRtGetNumSignatureInputs(signature, &interpreter->inputs) ||
      LiteRtGetNumSignatureOutputs(signature, &interpreter->outputs))
    return 1;
  size_t inputs = interpreter->inputs, count = inputs + interpreter->outputs;
  interpreter->tensors = calloc(count, sizeof *interpreter->tensors);
  interpreter->buffers = calloc(count, sizeof *interpreter->buffers);
  if (!interpreter->tensors || !interpreter->buffers) return 1;
  for (size_t i = 0; i < count; i++) {
    Description description;
    int failed = i < inputs ? LiteRtGetSignatureInputTensorByIndex(signature, i, &description)
                            : LiteRtGetSignatureOutputTensorByIndex(signature, i - inputs, &description);
    if (failed || describe(description, interpreter->tensors + i)) return 1;
  }
  return 0;
}

TfLiteInterpreter* TfLiteInterpreterCreate(const TfLiteModel* model, const TfLiteInterpreterOptions* options) {
  TfLiteInterpreter* interpreter = calloc(1, sizeof *interpreter);
  if (!interpreter) return NULL;
  interpreter->compiled = compile(model->network, options ? options->threads : 0);
  if (!interpreter->compiled || describe_all(model->network, interpreter)) {
    TfLiteInterpreterDelete(interpreter);
    return NULL;
  }
  return interpreter;
}

void TfLiteInterpreterDelete(TfLiteInterpreter* interpreter) {
  if (!interpreter) return;
  for (size_t i = 0; interpreter->buffers && i < interpreter->inputs + interpreter->outputs; i++)
    if (interpreter->buffers[i]) LiteRtDestroyTensorBuffer(interpreter->buffers[i]);
  if (interpreter->compiled) LiteRtDestroyCompiledModel(interpreter->compiled);
  free(interpreter->tensors);
  free(interpreter->buffers);
  free(interpreter);
}

int32_t TfLiteInterpreterGetInputTensorCount(const TfLiteInterpreter* interpreter) {
  return (int32_t)interpreter->inputs;
}

int32_t TfLiteInterpreterGetOutputTensorCount(const TfLiteInterpreter* interpreter) {
  return (int32_t)interpreter->outputs;
}

TfLiteTensor* TfLiteInterpreterGetInputTensor(const TfLiteInterpreter* interpreter, int32_t index) {
  return interpreter->tensors + index;
}

const TfLiteTensor* TfLiteInterpreterGetOutputTensor(const TfLiteInterpreter* interpreter, int32_t index) {
  return interpreter->tensors + interpreter->inputs + index;
}

/* The shape of the file is the only one. */
TfLiteStatus TfLiteInterpreterResizeInputTensor(TfLiteInterpreter* interpreter, int32_t index, const int* sizes,
                                                int32_t rank) {
  const Layout* layout = &interpreter->tensors[index].type.layout;
  if (rank != (int32_t)layout->rank || memcmp(sizes, layout->sizes, (size_t)rank * sizeof *sizes))
    return kTfLiteError;
  return kTfLiteOk;
}

/* Memory of the host; its address stays as long as the buffer lives. */
static int allocate(TfLiteInterpreter* interpreter, size_t i) {
  TfLiteTensor* tensor = interpreter->tensors + i;
  Compiled compiled = interpreter->compiled;
  size_t inputs = interpreter->inputs;
  Requirements requirements;
  if (i < inputs ? LiteRtGetCompiledModelInputBufferRequirements(compiled, 0, i, &requirements)
                 : LiteRtGetCompiledModelOutputBufferRequirements(compiled, 0, i - inputs, &requirements))
    return 1;
  Buffer* buffer = interpreter->buffers + i;
  if (LiteRtCreateManagedTensorBufferFromRequirements(environment(), &tensor->type, requirements, buffer)) {
    *buffer = NULL;
    return 1;
  }
  tensor->buffer = *buffer;
  return LiteRtGetTensorBufferPackedSize(*buffer, &tensor->size) ||
         LiteRtLockTensorBuffer(*buffer, &tensor->bytes, i < inputs ? LOCK_TO_WRITE : LOCK_TO_READ) ||
         LiteRtUnlockTensorBuffer(*buffer);
}

TfLiteStatus TfLiteInterpreterAllocateTensors(TfLiteInterpreter* interpreter) {
  for (size_t i = 0; i < interpreter->inputs + interpreter->outputs; i++)
    if (!interpreter->buffers[i] && allocate(interpreter, i)) return kTfLiteError;
  return kTfLiteOk;
}

TfLiteStatus TfLiteInterpreterInvoke(TfLiteInterpreter* interpreter) {
  size_t inputs = interpreter->inputs;
  if (LiteRtRunCompiledModel(interpreter->compiled, 0, inputs, interpreter->buffers, interpreter->outputs,
                             interpreter->buffers + inputs))
    return kTfLiteError;
  return kTfLiteOk;
}

/* Tensors */

TfLiteType TfLiteTensorType(const TfLiteTensor* tensor) { return (TfLiteType)tensor->type.element_type; }

int32_t TfLiteTensorNumDims(const TfLiteTensor* tensor) { return (int32_t)tensor->type.layout.rank; }

int32_t TfLiteTensorDim(const TfLiteTensor* tensor, int32_t index) { return tensor->type.layout.sizes[index]; }

size_t TfLiteTensorByteSize(const TfLiteTensor* tensor) { return tensor->size; }

void* TfLiteTensorData(const TfLiteTensor* tensor) { return tensor->bytes; }

const char* TfLiteTensorName(const TfLiteTensor* tensor) { return tensor->name; }

TfLiteQuantizationParams TfLiteTensorQuantizationParams(const TfLiteTensor* tensor) {
  TfLiteQuantizationParams params = {tensor->affine.scale, (int32_t)tensor->affine.zero_point};
  return params;
}

TfLiteStatus TfLiteTensorCopyFromBuffer(TfLiteTensor* tensor, const void* bytes, size_t size) {
  if (!tensor->bytes || size != tensor->size) return kTfLiteError;
  memcpy(tensor->bytes, bytes, size);
  return kTfLiteOk;
}

TfLiteStatus TfLiteTensorCopyToBuffer(const TfLiteTensor* tensor, void* bytes, size_t size) {
  if (!tensor->bytes || size != tensor->size) return kTfLiteError;
  memcpy(bytes, tensor->bytes, size);
  return kTfLiteOk;
}
