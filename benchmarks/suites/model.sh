# model: speed, memory and quality of the demo model and of a shape, dense and with a tenth of the neurons: minutes
# shellcheck shell=bash disable=SC2154

few=${quick:+--gen-tokens 2 --runs 1}
prompt="--prompt-tokens ${quick:+32}"
[ -n "$quick" ] || prompt="--prompt-tokens 512"
# shellcheck disable=SC2086
{
    record demo.json sparrow bench $few --format json
    record demo-batch-4.json sparrow bench --batch 4 $few --format json
    record demo-quantized.json sparrow bench --dtype int8,int4,int4-g128 $few --format json
    record demo-quality.json sparrow eval --format json
    record "$shape.json" sparrow bench --shape "$shape" --dtype bf16,int8,int4 --active 0.1 ${few:---gen-tokens 24} --format json
    record "$shape-f32.json" sparrow bench --shape "$shape" --dtype f32 ${few:---gen-tokens 8 --runs 2} --format json
    record "$shape-prompt-512.json" sparrow bench --shape "$shape" --dtype bf16,int8,int4 $prompt ${few:---gen-tokens 2} --format json
    SPARROW_ISA=avx512 record "$shape-prompt-512-avx512.json" \
        sparrow bench --shape "$shape" $prompt ${few:---gen-tokens 2 --runs 2} --format json
    record "$shape-profile.json" sparrow profile --shape "$shape" --active 0.1 $prompt --gen-tokens 8 --format json
}
record doctor-after.json sparrow doctor --format json
