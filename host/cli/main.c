/* clattn, the program: finds the command and hands it its options. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"

#define PROBLEM_NOTE                                                                                                   \
    "\nPROBLEM is one line of words, such as\n"                                                                        \
    "    f16 b2 hq8 hkv2 q128 kv1024 d128 [dv64] [causal] [offset=896] [window=256,0]\n"                               \
    "    [kvlen=1000] [scale=0.5] [bshd] [softcap=30] [alibi[=per-batch]] [bias=1,h,q,kv:f16] [mask=b,1,1,kv]\n"       \
    "    [sinks] [dropout=0.1:seed=7] [varlen=3,5,0,17]\n"                                                             \
    "offset and kvlen may be per-batch. Dimensions of bias and mask that are 1 are broadcast. varlen lists\n"          \
    "the sequences' lengths, or QUERIES:KEYS, and stands for b, q and kv. b, hkv and dv may be left out:\n"            \
    "1, hq and d.\n"                                                                                                   \
    "Its data is random: Q, K, V, bias and sinks N(0,1), and 0.7 of the mask is true.\n"

static const command commands[] = {
    {"devices", COMMAND_DEVICES, "Lists the host path and every OpenCL device, and what clattn uses on it.", "", NULL,
     false, cmd_devices},
    {"forward", COMMAND_FORWARD, "Computes O = softmax(scale * Q K^T) V from files, and the log-sum-exp of each row.",
     "\nO has the files' type, or that of --dtype. NumPy has no bf16: --dtype bf16 rounds f2, f4 or f8 files to it,\n"
     "computes, and writes O as f4. With --cu-seqlens-q and --cu-seqlens-kv, sequences lie one after the other in\n"
     "Q, K, V and O, [total, heads, dim], and LSE is [heads, total]. The scores' way is scale, softcap, ALiBi, bias,\n"
     "mask, softmax, dropout.\n",
     NULL, false, cmd_forward},
    {"backward", COMMAND_BACKWARD, "Computes the gradients of a loss L by Q, K, V and more, from files and from dL/dO.",
     "\nThe forward pass runs first, for O and LSE, then backward; --kernel, --block-q and --block-kv are of backward. "
     "At\n"
     "least one output is needed. Gradients have their inputs' type and layout; bf16 ones are written as f4. With\n"
     "--cu-seqlens-q and --cu-seqlens-kv, --dlse is [heads, total]. The other notes are those of `forward`.\n",
     NULL, false, cmd_backward},
    {"compare", COMMAND_COMPARE,
     "Runs every path and device on one problem, beside a float64 reference; exits 1 past the tolerance, or where none "
     "ran.",
     "\nThe problem is a text, or files as in `forward`; without one, the self-test's problems run, for minutes where\n"
     "kernels compile, and the worst is named. --path, --kernel and --device leave out the other rows.\n" PROBLEM_NOTE,
     "PROBLEM", false, cmd_compare},
    {"bench", COMMAND_BENCH, "Times clattn_forward, or clattn_backward, on one problem.",
     "\nOn a device that does not share the host's memory, tensors are in the device's, and what is timed is\n"
     "clattn_enqueue_forward or clattn_enqueue_backward until they are done, without copies; --resident does so on "
     "every\n"
     "device, and --copies times calls with host pointers on every one.\n"
     "The peak is that of f32 multiply-adds on this processor, measured with the same threads (of f64, half of it).\n"
     "--plot times n_kv of 16, 32, 64 and so on up to the problem's own, and n_q in step with it unless there are no\n"
     "more than 16, on the host and on every device; --path, --kernel and --device leave out lines. Beside them "
     "stands\n"
     "the roofline: the peak, or the operations for each byte of inputs and output times the bandwidth of reading\n"
     "memory, whichever is less.\n" PROBLEM_NOTE,
     "PROBLEM", false, cmd_bench},
    {"selftest", COMMAND_SELFTEST,
     "Checks small problems on the host and on every device, which takes minutes where kernels compile; exits 1 when "
     "one is wrong.",
     "", NULL, false, cmd_selftest},
    {"tune", COMMAND_TUNE, "Finds the fastest block sizes for a device, and the host path's share, and keeps them.",
     "\nThe table is a text file (docs/tuning.md): CLATTN_TUNING, else tuning.txt beside the built programs. Lines of\n"
     "the same problem are replaced, others stay. What is shipped stays unless another is 2 % faster. Ctrl-C, and\n"
     "the budget's end, keep what is finished. Without a problem, eight run: f32 and f16, d64 and d128, full and\n"
     "causal.\n" PROBLEM_NOTE
     "Problems of Q, K and V alone: no bias, mask, alibi, sinks, dropout, varlen, and nothing per-batch.\n",
     "PROBLEM", true, cmd_tune},
};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static void print_usage(FILE *to)
{
    fprintf(to, "usage: clattn COMMAND [flags]\n\nExact tiled attention on any OpenCL device, and on the host.\n\n");
    for (int i = 0; i < N_COMMANDS; i++) fprintf(to, "    %-12s%s\n", commands[i].name, commands[i].about);
    fprintf(to, "\nclattn COMMAND --help tells a command's flags; clattn --version the version.\n"
                "Exit status: 0 good, 1 the answer is wrong or the work failed, 2 bad usage or bad input.\n");
}

static int run(int argc, char **argv)
{
    if (argc < 2) {
        print_usage(stderr);
        return CLI_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) return print_usage(stdout), CLI_OK;
    if (!strcmp(argv[1], "--version")) return printf("clattn %s\n", clattn_version()), CLI_OK;
    for (int i = 0; i < N_COMMANDS; i++) {
        options o;
        bool help;
        if (strcmp(argv[1], commands[i].name)) continue;
        if (args_parse(&commands[i], argc - 2, argv + 2, &o, &help)) return CLI_USAGE;
        if (help) return args_print_help(&commands[i], stdout), CLI_OK;
        return commands[i].run(&o);
    }
    return cli_fail(CLI_USAGE, "%s: no such command; see clattn --help", argv[1]);
}

int main(int argc, char **argv)
{
    const int code = run(argc, argv);
    errno = 0;
    if (fflush(stdout) || ferror(stdout)) {
        cli_fail(CLI_FAILED, "standard output: %s", errno ? strerror(errno) : "not all of it could be written");
        return code ? code : CLI_FAILED;
    }
    return code;
}
