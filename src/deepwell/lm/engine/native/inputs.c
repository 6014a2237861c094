/* Rows as integer matrices want them: for each group of 32 inputs whole numbers of 16 or of 8 bits, and a scale. */

#include "program.h"
#include "vectors.h"

size_t dw_input_bytes(const dw_matrix *matrix, int32_t rows) {
    if (matrix->format < DW_INT8) return 0;
    size_t groups = (size_t)dw_groups(matrix) * (size_t)rows;
    return dw_padded(groups * DW_GROUP * (matrix->format == DW_INT8 ? 2 : 1)) + 2 * dw_padded(groups * 4);
}

void dw_input_place(dw_input *input, const dw_matrix *matrix, int32_t rows, void *memory) {
    if (matrix->format < DW_INT8) return;
    size_t groups = (size_t)dw_groups(matrix) * (size_t)rows;
    char *at = memory;
    input->integers = at;
    at += dw_padded(groups * DW_GROUP * (matrix->format == DW_INT8 ? 2 : 1));
    input->scales = (float *)at;
    input->sums = (float *)(at + dw_padded(groups * 4));
}

/* A group's floats as integers up to `most`, of 16 bits or of 8: their scale, and what they stand for together. */
INLINE float round_group(const float *from, int32_t count, const int narrow, void *to, float *sum) {
    const float most = narrow ? 127.0f : 32767.0f;
    float copied[DW_GROUP];
    if (count < DW_GROUP) {
        memset(copied, 0, sizeof copied);
        memcpy(copied, from, (size_t)count * 4);
        from = copied;
    }
    f32x8 value[4];
    i32x8 largest = {0}; /* as whole numbers: in that order NaN stands behind all others, and so is not lost */
    for (int i = 0; i < 4; i++) {
        value[i] = load8(from + 8 * i);
        largest = max8_i32((i32x8)value[i] & 0x7fffffff, largest);
    }
    float top = float_of(max_of8_i32(largest)), inverse = top > 0 ? most / top : 0, scale = top / most;
    if (!(inverse < 3e38f)) inverse = 0; /* what is this small is nothing */
#ifdef __AVX2__
    __m256i whole[4];
    for (int i = 0; i < 4; i++) whole[i] = _mm256_cvtps_epi32((__m256)(value[i] * inverse));
    /* Packing works on the halves of a register apart: what it mixes up is put back in order. */
    __m256i one = _mm256_packs_epi32(whole[0], whole[1]), other = _mm256_packs_epi32(whole[2], whole[3]);
    if (!narrow) {
        _mm256_storeu_si256(to, _mm256_permute4x64_epi64(one, 0xd8));
        _mm256_storeu_si256((__m256i *)to + 1, _mm256_permute4x64_epi64(other, 0xd8));
        return scale;
    }
    __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(one, other), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(to, bytes);
    __m256i total = _mm256_madd_epi16(_mm256_add_epi16(one, other), _mm256_set1_epi16(1));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    *sum = scale * (float)(_mm_cvtsi128_si32(four) + _mm_extract_epi32(four, 1));
#else
    int32_t total = 0;
    for (int i = 0; i < DW_GROUP; i++) {
        int32_t whole = ((i32x8)(value[i / 8] * inverse + ROUNDS))[i % 8] - 0x4b400000;
        if (narrow) total += ((int8_t *)to)[i] = (int8_t)whole;
        else ((int16_t *)to)[i] = (int16_t)whole;
    }
    *sum = scale * (float)total;
#endif
    return scale;
}

INLINE void round_rows(const dw_input *input, const dw_matrix *matrix, const int narrow, int64_t first, int64_t last) {
    int32_t groups = dw_groups(matrix);
    for (int64_t row = first; row < last; row++)
        for (int32_t group = 0; group < groups; group++) {
            int64_t at = row * groups + group;
            int32_t count = matrix->in - group * DW_GROUP;
            input->scales[at] = round_group(input->rows + row * input->step + group * DW_GROUP,
                                            count < DW_GROUP ? count : DW_GROUP, narrow,
                                            (char *)input->integers + at * DW_GROUP * (narrow ? 1 : 2), &input->sums[at]);
        }
}

void dw_input_make(const dw_input *input, const dw_matrix *matrix, int32_t first, int32_t last) {
    if (matrix->format == DW_INT8) round_rows(input, matrix, 0, first, last);
    if (matrix->format == DW_INT4) round_rows(input, matrix, 1, first, last);
}
