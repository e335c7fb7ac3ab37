// The part of TensorRT's interface that a plugin library meets, declared anew: this library is built without NVIDIA's
// headers and links nothing of NVIDIA's.  What counts is the binary layout (Itanium C++ ABI): the order of virtual
// functions, the fields of structs, the numbers of enumerators.  They are equal in TensorRT 10.0 to 11.x and TensorRT for
// RTX 1.3 and newer; tests/native/test_declarations.py compares them with NVIDIA's headers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace layerport::trt {

enum class ApiLanguage : int32_t { cpp, python };
enum class DataType : int32_t { float32, float16, int8, int32, boolean, uint8, fp8, bfloat16, int64, int4, fp4, e8m0 };
enum class DimensionOperation : int32_t { sum, prod, max, min, sub, equal, less, floor_div, ceil_div };
enum class FieldType : int32_t { float16, float32, float64, int8, int16, int32, character, dims, unknown };
enum class Phase : int32_t { build, runtime };
enum class CapabilityType : int32_t { core, build, runtime };
enum class Severity : int32_t { internal_error, error, warning, info, verbose };
enum class TensorFormat : int32_t { linear };

constexpr int32_t max_dims = 8;

struct Dims {
    int32_t count;
    int64_t sizes[max_dims];
};

struct InterfaceInfo {
    char const* kind;
    int32_t major;
    int32_t minor;
};

struct PluginField {
    char const* name;
    void const* data;
    FieldType type;
    int32_t length;
};

struct PluginFieldCollection {
    int32_t count;
    PluginField const* fields;
};

struct TensorDesc {
    Dims dims;
    DataType type;
    TensorFormat format;
    float scale;
};

struct DynamicTensorDesc {
    TensorDesc desc;
    Dims min;
    Dims max;
    Dims opt;
};

class DimensionExpr;

struct DimsExprs {
    int32_t count;
    DimensionExpr const* sizes[max_dims];
};

// Behind the object that a plugin gets.
class ExprBuilderImpl {
public:
    virtual ~ExprBuilderImpl() = default;
    virtual DimensionExpr const* constant(int64_t value) = 0;
    virtual DimensionExpr const* operation(
        DimensionOperation operation, DimensionExpr const& first, DimensionExpr const& second) = 0;
    virtual DimensionExpr const* declare_size_tensor(
        int32_t output, DimensionExpr const& opt, DimensionExpr const& upper) = 0;
};

class ExprBuilder {
public:
    virtual ~ExprBuilder() = default;
    ExprBuilderImpl* impl;
};

class VersionedInterface {
public:
    virtual ApiLanguage api_language() const noexcept { return ApiLanguage::cpp; }
    virtual InterfaceInfo interface_info() const noexcept = 0;
    virtual ~VersionedInterface() noexcept = default;
};

class PluginCapability : public VersionedInterface {};

class PluginV3 : public VersionedInterface {
public:
    InterfaceInfo interface_info() const noexcept override { return {"PLUGIN", 1, 0}; }
    virtual PluginCapability* capability(CapabilityType kind) noexcept = 0;
    virtual PluginV3* clone() noexcept = 0;
};

class PluginCore : public PluginCapability {
public:
    InterfaceInfo interface_info() const noexcept override { return {"PLUGIN_V3ONE_CORE", 1, 0}; }
    virtual char const* plugin_name() const noexcept = 0;
    virtual char const* plugin_version() const noexcept = 0;
    virtual char const* plugin_namespace() const noexcept = 0;
};

class PluginBuild : public PluginCapability {
public:
    InterfaceInfo interface_info() const noexcept override { return {"PLUGIN_V3ONE_BUILD", 1, 0}; }
    virtual int32_t configure(
        DynamicTensorDesc const* in, int32_t inputs, DynamicTensorDesc const* out, int32_t outputs) noexcept = 0;
    virtual int32_t output_data_types(
        DataType* output_types, int32_t outputs, DataType const* input_types, int32_t inputs) const noexcept = 0;
    virtual int32_t output_shapes(DimsExprs const* in, int32_t inputs, DimsExprs const* shape_in, int32_t shape_inputs,
        DimsExprs* out, int32_t outputs, ExprBuilder& builder) noexcept = 0;
    virtual bool supports_format_combination(
        int32_t place, DynamicTensorDesc const* tensors, int32_t inputs, int32_t outputs) noexcept = 0;
    virtual int32_t output_count() const noexcept = 0;
    virtual size_t workspace_size(DynamicTensorDesc const*, int32_t, DynamicTensorDesc const*, int32_t) const noexcept
    {
        return 0;
    }
    virtual int32_t valid_tactics(int32_t* tactics, int32_t count) noexcept = 0;
    virtual int32_t tactic_count() noexcept = 0;
    virtual char const* timing_cache_id() noexcept = 0;
    virtual int32_t format_combination_limit() noexcept { return 100; }
    virtual char const* metadata_string() noexcept = 0;
};

class PluginRuntime : public PluginCapability {
public:
    InterfaceInfo interface_info() const noexcept override { return {"PLUGIN_V3ONE_RUNTIME", 1, 0}; }
    virtual int32_t set_tactic(int32_t tactic) noexcept = 0;
    virtual int32_t on_shape_change(
        TensorDesc const* in, int32_t inputs, TensorDesc const* out, int32_t outputs) noexcept = 0;
    virtual int32_t enqueue(TensorDesc const* in, TensorDesc const* out, void const* const* inputs,
        void* const* outputs, void* workspace, void* stream) noexcept = 0;
    virtual PluginV3* attach_to_context(void* context) noexcept = 0;
    virtual PluginFieldCollection const* fields_to_serialize() noexcept = 0;
};

class PluginCreator : public VersionedInterface {
public:
    InterfaceInfo interface_info() const noexcept override { return {"PLUGIN CREATOR_V3ONE", 1, 0}; }
    virtual PluginV3* create_plugin(char const* name, PluginFieldCollection const* fields, Phase phase) noexcept = 0;
    virtual PluginFieldCollection const* field_names() noexcept = 0;
    virtual char const* plugin_name() const noexcept = 0;
    virtual char const* plugin_version() const noexcept = 0;
    virtual char const* plugin_namespace() const noexcept = 0;
};

} // namespace layerport::trt
