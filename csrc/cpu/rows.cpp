// tree_rows and branch_rows: the rows of a forward pass over the sequences' tables. See ssd/ops.py.

#include <ATen/ops/empty.h>

#include <algorithm>
#include <tuple>

#include "../arguments.h"
#include "../common/paging.h"
#include "program.h"

namespace ssd {
namespace {

using RowTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The columns of the rows. suffix_slots has `width` entries a row.
struct Rows {
  Rows(int64_t rows, int64_t width, const at::TensorOptions& options) : width(width) {
    for (Tensor& column : columns) column = at::empty({rows}, options);
    suffix_slots = at::empty({rows, width}, options);
  }
  int32_t* ids() const { return columns[0].mutable_data_ptr<int32_t>(); }
  int32_t* positions() const { return columns[1].mutable_data_ptr<int32_t>(); }
  int32_t* kv_slots() const { return columns[2].mutable_data_ptr<int32_t>(); }
  int32_t* row_seq() const { return columns[3].mutable_data_ptr<int32_t>(); }
  int32_t* prefix_len() const { return columns[4].mutable_data_ptr<int32_t>(); }
  int32_t* suffix_len() const { return columns[5].mutable_data_ptr<int32_t>(); }
  int32_t* suffix(int64_t row) const { return suffix_slots.mutable_data_ptr<int32_t>() + row * width; }
  RowTensors tensors() const { return {columns[0], columns[1], columns[2], columns[3], columns[4], suffix_slots, columns[5]}; }

  int64_t width;
  Tensor columns[6], suffix_slots;
};

RowTensors tree_rows(const Tensor& tokens, const Tensor& spec_tokens, const Tensor& length, const Tensor& page_table,
                     const OptionalTensor& parent, int64_t page_size, int64_t first, int64_t count, int64_t depth) {
  const TreeRowsSizes sizes = check_tree_rows(tokens, spec_tokens, length, page_table, parent, page_size, first, count, depth);
  const Rows rows(sizes.rows, depth, tokens.options());
  run_or_record([=] {
    const int32_t* parents = pointer_or_null<int32_t>(parent);
    for (int64_t i = 1; parents != nullptr && i < sizes.nodes; ++i)
      TORCH_CHECK(parents[i] >= 0 && parents[i] < i, "parent[", i, "] is ", parents[i], ", outside 0..", i - 1);
    int64_t row = 0;
    for (int64_t s = 0; s < sizes.slots; ++s) {
      const int64_t n = length.const_data_ptr<int32_t>()[s];
      TORCH_CHECK(n >= 0 && n < sizes.capacity, "length[", s, "] is ", n, ", outside 0..", sizes.capacity - 1);
      const int32_t* pages = page_table.const_data_ptr<int32_t>() + s * sizes.table_width;
      const auto slot_at = [&](int64_t position) {
        if (n == 0) return kNullPage;
        TORCH_CHECK(position / page_size < sizes.table_width, "page_table has ", sizes.table_width,
                    " pages a slot, too few for position ", position, " of slot ", s);
        return static_cast<int32_t>(kv_slot(pages, static_cast<int32_t>(position), static_cast<int32_t>(page_size)));
      };
      for (int64_t node = first; node < first + count; ++node, ++row) {
        const int64_t stored_at = std::max<int64_t>(n + node, 0);
        rows.ids()[row] = node <= 0 ? tokens.const_data_ptr<int32_t>()[s * sizes.capacity + stored_at]
                                    : spec_tokens.const_data_ptr<int32_t>()[s * (sizes.nodes - 1) + node - 1];
        rows.kv_slots()[row] = slot_at(stored_at);
        rows.row_seq()[row] = static_cast<int32_t>(s);
        int64_t level = 0;
        for (int64_t i = node; parents != nullptr && i > 0; i = parents[i]) ++level;
        TORCH_CHECK(level <= depth || parents == nullptr, "parent puts node ", node, " at depth ", level, ", below ", depth);
        const bool branches = parents != nullptr && node > 0;
        rows.positions()[row] = static_cast<int32_t>(branches ? n + level : stored_at);
        rows.prefix_len()[row] = static_cast<int32_t>(branches ? n + 1 : stored_at + 1);
        rows.suffix_len()[row] = static_cast<int32_t>(level);
        int32_t* suffix = rows.suffix(row);
        std::fill_n(suffix, depth, 0);
        for (int64_t i = node; branches && i > 0; i = parents[i]) suffix[--level] = slot_at(n + i);
      }
    }
  });
  return rows.tensors();
}

RowTensors branch_rows(const Tensor& guess, const Tensor& guess_k, const Tensor& branch_tokens, const Tensor& length,
                       const Tensor& scratch, int64_t step) {
  const BranchRowsSizes sizes = check_branch_rows(guess, guess_k, branch_tokens, length, scratch, step);
  const int64_t slots = sizes.slots, budget = sizes.budget, lookahead = sizes.lookahead;
  const Rows rows(slots * budget, step + 1, guess.options());
  run_or_record([=] {
    for (int64_t row = 0; row < slots * budget; ++row) {
      const int64_t s = row / budget;
      const int32_t node = std::max(guess_k.const_data_ptr<int32_t>()[row], 0);
      const int32_t trunk = length.const_data_ptr<int32_t>()[s] + 1 + node;
      const int32_t* slots_of_branch = scratch.const_data_ptr<int32_t>() + row * lookahead;
      rows.ids()[row] = step == 0 ? guess.const_data_ptr<int32_t>()[row]
                                  : branch_tokens.const_data_ptr<int32_t>()[row * lookahead + step - 1];
      rows.positions()[row] = trunk + static_cast<int32_t>(step);
      rows.kv_slots()[row] = slots_of_branch[step];
      rows.row_seq()[row] = static_cast<int32_t>(s);
      rows.prefix_len()[row] = trunk;
      rows.suffix_len()[row] = static_cast<int32_t>(step) + 1;
      std::copy_n(slots_of_branch, step + 1, rows.suffix(row));
    }
  });
  return rows.tensors();
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) {
  m.impl("tree_rows", tree_rows);
  m.impl("branch_rows", branch_rows);
}

}  // namespace ssd
