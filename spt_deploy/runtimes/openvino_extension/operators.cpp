// The spt operators as OpenVINO operators: what of them is no matrix product, which OpenVINO itself does best.
//
// Each takes float32 or bfloat16 and counts in int32. `functions.py` says where in the operator set they belong.

#include <openvino/core/op_extension.hpp>
#include <openvino/core/parallel.hpp>
#include <openvino/frontend/onnx/extension/op.hpp>
#include <openvino/op/op.hpp>

#include "packed_attention.hpp"
#include "selection.hpp"

namespace spt {

using ov::Dimension;
using ov::PartialShape;
using ov::Tensor;
using ov::TensorVector;

const auto IN_PARALLEL = [](size_t count, const auto& call) { ov::parallel_for(count, call); };

inline const Bfloat16* bfloat16(const Tensor& tensor) { return static_cast<const Bfloat16*>(tensor.data()); }
inline Bfloat16* bfloat16(Tensor& tensor) { return static_cast<Bfloat16*>(tensor.data()); }
inline bool is_float32(const Tensor& tensor) { return tensor.get_element_type() == ov::element::f32; }

template <typename Operator>
class Base : public ov::op::Op {
public:
    Base() = default;
    explicit Base(const ov::OutputVector& inputs) : Op(inputs) {}
    bool visit_attributes(ov::AttributeVisitor&) override { return true; }
    bool has_evaluate() const override { return true; }

    // Requests at the same time clone the same node to infer shapes, so that nothing but attributes may be copied.
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        auto clone = std::make_shared<Operator>();
        clone->take_attributes(static_cast<const Operator&>(*this));
        clone->set_arguments(inputs);
        clone->validate_and_infer_types();
        return clone;
    }

    void take_attributes(const Operator&) {}
};

// logits B x N, order N, threshold -> token_of_slot S, slot_of_token B x N, cu_seqlens B + 1
class SelectTokens : public Base<SelectTokens> {
public:
    OPENVINO_OP("SelectTokens", "spt");
    using Base::Base;

    void validate_and_infer_types() override {
        const PartialShape& logits = get_input_partial_shape(0);
        const Dimension room = logits[0] * logits[1];
        set_output_type(0, ov::element::i32, PartialShape{Dimension(0, room.get_max_length())});
        set_output_type(1, ov::element::i32, logits);
        set_output_type(2, ov::element::i32, PartialShape{logits[0] + 1});
    }

    bool evaluate(TensorVector& outputs, const TensorVector& inputs) const override {
        const ov::Shape shape = inputs[0].get_shape();
        outputs[1].set_shape(shape);
        outputs[2].set_shape({shape[0] + 1});
        const auto list = select_tokens(inputs[0].data<float>(), inputs[1].data<int32_t>(), *inputs[2].data<float>(),
                                        static_cast<int>(shape[0]), static_cast<int>(shape[1]),
                                        outputs[1].data<int32_t>(), outputs[2].data<int32_t>());
        outputs[0].set_shape({list.size()});
        if (!list.empty()) std::memcpy(outputs[0].data(), list.data(), list.size() * sizeof list[0]);
        return true;
    }
};

// h B x N x C, gate B x N, token_of_slot S -> S x C
class GatherGated : public Base<GatherGated> {
public:
    OPENVINO_OP("GatherGated", "spt");
    using Base::Base;

    void validate_and_infer_types() override {
        const PartialShape& h = get_input_partial_shape(0);
        set_output_type(0, get_input_element_type(0), PartialShape{get_input_partial_shape(2)[0], h[2]});
    }

    bool evaluate(TensorVector& outputs, const TensorVector& inputs) const override {
        const size_t slots = inputs[2].get_size(), channels = inputs[0].get_shape()[2];
        if (slots == 0) return true;
        const auto *gate = inputs[1].data<float>();
        const auto *list = inputs[2].data<int32_t>();
        if (is_float32(inputs[0]))
            gather_gated(inputs[0].data<float>(), gate, list, slots, channels, outputs[0].data<float>(), IN_PARALLEL);
        else
            gather_gated(bfloat16(inputs[0]), gate, list, slots, channels, bfloat16(outputs[0]), IN_PARALLEL);
        return true;
    }
};

// qkv S x 3C, token_of_slot S, cu_seqlens B + 1, bias_table (2M - 1)^2 x heads -> S x C
class PackedAttention : public Base<PackedAttention> {
public:
    OPENVINO_OP("PackedAttention", "spt");
    using Base::Base;

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("heads", m_heads);
        visitor.on_attribute("window", m_window);
        visitor.on_attribute("tokens", m_tokens);
        visitor.on_attribute("width", m_width);
        visitor.on_attribute("packing", m_packing);
        return true;
    }

    void take_attributes(const PackedAttention& other) {
        m_heads = other.m_heads, m_window = other.m_window, m_tokens = other.m_tokens, m_width = other.m_width;
        m_packing = other.m_packing;
    }

    void validate_and_infer_types() override {
        const PartialShape& qkv = get_input_partial_shape(0);
        NODE_VALIDATION_CHECK(this, qkv[1].compatible(3 * m_heads * HEAD), "heads have ", HEAD, " channels");
        NODE_VALIDATION_CHECK(this, m_window * m_window <= LENGTH, "a container has ", LENGTH, " tokens at most");
        set_output_type(0, get_input_element_type(0), PartialShape{qkv[0], m_heads * HEAD});
    }

    bool evaluate(TensorVector& outputs, const TensorVector& inputs) const override {
        if (inputs[1].get_size() == 0) return true;
        if (is_float32(inputs[0]))
            attend(inputs[0].data<float>(), inputs, outputs[0].data<float>());
        else
            attend(bfloat16(inputs[0]), inputs, bfloat16(outputs[0]));
        return true;
    }

private:
    template <typename Number>
    void attend(const Number* qkv, const TensorVector& inputs, Number* out) const {
        const AttentionShape shape{static_cast<int>(m_heads), static_cast<int>(m_window), static_cast<int>(m_tokens),
                                   static_cast<int>(m_width), m_packing == "per-image"};
        packed_attention(qkv, inputs[1].data<int32_t>(), inputs[2].data<int32_t>(),
                         static_cast<int>(inputs[2].get_size()) - 1, inputs[3].data<float>(), shape, out,
                         parallel_get_max_threads(), IN_PARALLEL);
    }

    int64_t m_heads = 0, m_window = 0, m_tokens = 0, m_width = 0;
    std::string m_packing;
};

// branch S x C, slot_of_token B x N, residual B x N x C -> B x N x C
class AddScattered : public Base<AddScattered> {
public:
    OPENVINO_OP("AddScattered", "spt");
    using Base::Base;

    void validate_and_infer_types() override {
        set_output_type(0, get_input_element_type(2), get_input_partial_shape(2));
    }

    bool evaluate(TensorVector& outputs, const TensorVector& inputs) const override {
        const size_t tokens = inputs[1].get_size(), channels = inputs[2].get_shape()[2];
        const auto *slots = inputs[1].data<int32_t>();
        const bool any = inputs[0].get_size() > 0;
        if (is_float32(inputs[2]))
            add_scattered(any ? inputs[0].data<float>() : nullptr, slots, inputs[2].data<float>(), tokens, channels,
                          outputs[0].data<float>(), IN_PARALLEL);
        else
            add_scattered(any ? bfloat16(inputs[0]) : nullptr, slots, bfloat16(inputs[2]), tokens, channels,
                          bfloat16(outputs[0]), IN_PARALLEL);
        return true;
    }
};

template <typename Operator>
void offer(std::vector<ov::Extension::Ptr>& extensions, const std::string& name) {
    extensions.push_back(std::make_shared<ov::OpExtension<Operator>>());
    extensions.push_back(std::make_shared<ov::frontend::onnx::OpExtension<Operator>>(name, "spt.openvino"));
}

std::vector<ov::Extension::Ptr> operators() {
    std::vector<ov::Extension::Ptr> extensions;
    offer<SelectTokens>(extensions, "SelectTokens");
    offer<GatherGated>(extensions, "GatherGated");
    offer<PackedAttention>(extensions, "PackedAttention");
    offer<AddScattered>(extensions, "AddScattered");
    return extensions;
}

}  // namespace spt

OPENVINO_CREATE_EXTENSIONS(spt::operators());
