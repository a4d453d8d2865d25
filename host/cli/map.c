/* Scores -> cells by max-pooling -> colors, with axes and a legend. */
#include "map.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "picture.h"

/* Pixels. */
enum {
    MOST_CELLS = 1600,  /* a longer side is pooled */
    LEAST_POOLED = 200, /* cells of a side that is pooled for the other's sake */
    WANTED_SIDE = 640,  /* a shorter longest side is enlarged ... */
    LEAST_SIDE = 32,    /* ... and so is a side that would be a line */
    MARGIN = 20,        /* around everything */
    GAP = 8,            /* between a thing and its label */
    TICK = 6,           /* a tick's length */
    TICK_DISTANCE = 90, /* at least, between two ticks with their labels */
    LEGEND_WIDTH = 24,
    LEGEND_LEAST_HEIGHT = 200,
    N_LEGEND_TICKS = 5
};

static const color ink = {40, 44, 52}, hidden_color = {205, 205, 205}, nan_color = {214, 39, 40};

/* ---- colors */

/* From dark to light, each step as large to the eye as the next. */
static color color_of(double share)
{
    static const color anchors[] = {{68, 1, 84},    {72, 40, 120},  {62, 74, 137},  {49, 104, 142}, {38, 130, 142},
                                    {31, 158, 137}, {53, 183, 121}, {109, 205, 89}, {180, 222, 44}, {253, 231, 37}};
    const int last = (int)(sizeof anchors / sizeof anchors[0]) - 1;
    const double at = fmin(fmax(share, 0), 1) * last;
    const int i = at < last ? (int)at : last - 1;
    const color a = anchors[i], b = anchors[i + 1];
    const double t = at - i;
    const color c = {(uint8_t)lrint(a.r + t * (b.r - a.r)), (uint8_t)lrint(a.g + t * (b.g - a.g)),
                     (uint8_t)lrint(a.b + t * (b.b - a.b))};
    return c;
}

/* Probs are colored by their square root: a row of many keys gives each of them little. */
typedef struct range {
    double least, most;
    bool is_probs;
} range;

static double share_of(const range *r, double value)
{
    const double share = r->most > r->least ? (value - r->least) / (r->most - r->least) : 1;
    return r->is_probs ? sqrt(fmax(share, 0)) : share;
}

static double value_at(const range *r, double share)
{
    return r->least + (r->is_probs ? share * share : share) * (r->most - r->least);
}

/* ---- cells */

/* One side of the map. */
typedef struct side {
    int64_t n;  /* queries or keys */
    int64_t of; /* that one cell stands for */
    int cells;
    int zoom; /* pixels of a cell */
} side;

/* The other side is pooled as much, where that leaves enough of it. */
static side side_make(int64_t n, int64_t other)
{
    const int64_t alone = (n - 1) / MOST_CELLS + 1, together = (other - 1) / MOST_CELLS + 1;
    const int64_t of = together > alone && n / together >= LEAST_POOLED ? together : alone;
    const side s = {n, of, (int)((n - 1) / of + 1), 1};
    return s;
}

static void enlarge(side *across, side *down)
{
    const int longest = across->cells > down->cells ? across->cells : down->cells;
    side *const both[2] = {across, down};
    for (int i = 0; i < 2; i++) {
        side *s = both[i];
        s->zoom = longest < WANTED_SIDE ? WANTED_SIDE / longest : 1;
        if (s->cells * s->zoom < LEAST_SIDE) s->zoom = (LEAST_SIDE - 1) / s->cells + 1;
    }
}

/* The largest number of a block, NaN when it has one; -inf when all are hidden. seen: -inf where hidden. */
static float *pool(const float *values, const float *seen, const side *across, const side *down)
{
    float *cells = cli_alloc("the map", (int64_t)across->cells * down->cells, sizeof *cells); /* [down, across] */
    if (!cells) return NULL;
    for (int64_t i = 0; i < (int64_t)across->cells * down->cells; i++) cells[i] = -INFINITY;
    for (int64_t i = 0; i < down->n; i++)
        for (int64_t j = 0; j < across->n; j++) {
            float *cell = &cells[i / down->of * across->cells + j / across->of];
            const float value = values[i * across->n + j];
            if (seen[i * across->n + j] == -INFINITY || isnan(*cell)) continue;
            if (isnan(value) || value > *cell) *cell = value;
        }
    return cells;
}

static range range_of(const float *cells, int64_t n, clattn_score_step step)
{
    range r = {INFINITY, -INFINITY, step == CLATTN_SCORE_PROBS};
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(cells[i])) continue;
        if (cells[i] < r.least) r.least = cells[i];
        if (cells[i] > r.most) r.most = cells[i];
    }
    if (r.least > r.most) r.least = r.most = 0; /* nothing is seen */
    if (r.is_probs) r.least = 0;
    return r;
}

/* ---- drawing */

typedef struct frame {
    int x, y, width, height; /* of the map itself */
} frame;

static void draw_cells(picture *p, const frame *f, const float *cells, const side *across, const side *down,
                       const range *r)
{
    for (int i = 0; i < down->cells; i++)
        for (int j = 0; j < across->cells; j++) {
            const float value = cells[(int64_t)i * across->cells + j];
            const color c = isnan(value) ? nan_color : value == -INFINITY ? hidden_color : color_of(share_of(r, value));
            picture_fill(p, f->x + j * across->zoom, f->y + i * down->zoom, across->zoom, down->zoom, c);
        }
}

static void draw_border(picture *p, int x, int y, int width, int height)
{
    picture_fill(p, x - 1, y - 1, width + 2, 1, ink);
    picture_fill(p, x - 1, y + height, width + 2, 1, ink);
    picture_fill(p, x - 1, y, 1, height, ink);
    picture_fill(p, x + width, y, 1, height, ink);
}

/* The least of 1, 2, 5, 10, 20, ... whose ticks stand far enough apart. */
static int64_t tick_step(const side *s)
{
    static const int factors[3] = {2, 5, 10};
    int64_t power = 1, step = 1;
    for (int i = 0; (double)step / (double)s->of * s->zoom < TICK_DISTANCE && step < s->n; i++) {
        step = power * factors[i % 3];
        if (i % 3 == 2) power *= 10;
    }
    return step;
}

static int tick_place(const side *s, int64_t n) { return (int)(n / s->of) * s->zoom + s->zoom / 2; }

static const char *number_text(int64_t n, char text[24]) { return snprintf(text, 24, "%" PRId64, n), text; }

static void draw_axes(picture *p, const frame *f, const side *across, const side *down)
{
    char text[24];
    const int below = f->y + f->height, left = MARGIN;
    for (int64_t n = 0, step = tick_step(across); n < across->n; n += step) {
        const int x = f->x + tick_place(across, n);
        picture_fill(p, x, below, 1, TICK, ink);
        picture_text(p, x - picture_text_width(number_text(n, text)) / 2, below + TICK + GAP, TEXT_ACROSS, ink, text);
    }
    for (int64_t n = 0, step = tick_step(down); n < down->n; n += step) {
        const int y = f->y + tick_place(down, n);
        picture_fill(p, f->x - TICK, y, TICK, 1, ink);
        picture_text(p, f->x - TICK - GAP - picture_text_width(number_text(n, text)), y - TEXT_HEIGHT / 2, TEXT_ACROSS,
                     ink, text);
    }
    picture_text(p, f->x + (f->width - picture_text_width("keys")) / 2, below + TICK + 2 * GAP + TEXT_LINE, TEXT_ACROSS,
                 ink, "keys");
    const int length = picture_text_width("queries"), bottom = f->y + (f->height + length) / 2;
    picture_text(p, left, bottom < f->y + length ? f->y + length : bottom, TEXT_UPWARDS, ink, "queries");
}

static void draw_swatch(picture *p, int x, int y, color c, const char *name)
{
    picture_fill(p, x, y, LEGEND_WIDTH, LEGEND_WIDTH, c);
    draw_border(p, x, y, LEGEND_WIDTH, LEGEND_WIDTH);
    picture_text(p, x + LEGEND_WIDTH + TICK + GAP, y + (LEGEND_WIDTH - TEXT_HEIGHT) / 2, TEXT_ACROSS, ink, name);
}

/* The bar from most to least, and below it what the other colors mean. */
static void draw_legend(picture *p, int x, int y, int height, const range *r, bool any_hidden, bool any_nan)
{
    for (int i = 0; i < height; i++) picture_fill(p, x, y + i, LEGEND_WIDTH, 1, color_of(1 - (double)i / (height - 1)));
    draw_border(p, x, y, LEGEND_WIDTH, height);
    for (int i = 0; i < N_LEGEND_TICKS; i++) {
        const double share = 1 - (double)i / (N_LEGEND_TICKS - 1);
        const int at = y + i * (height - 1) / (N_LEGEND_TICKS - 1);
        char text[24];
        snprintf(text, sizeof text, "%.3g", value_at(r, share));
        picture_fill(p, x + LEGEND_WIDTH, at, TICK, 1, ink);
        picture_text(p, x + LEGEND_WIDTH + TICK + GAP, at - TEXT_HEIGHT / 2, TEXT_ACROSS, ink, text);
    }
    int below = y + height + 2 * GAP;
    if (any_hidden) draw_swatch(p, x, below, hidden_color, "hidden");
    if (any_hidden) below += LEGEND_WIDTH + 2 * GAP;
    if (any_nan) draw_swatch(p, x, below, nan_color, "nan");
}

/* ---- the whole picture */

enum { MOST_TITLE_LINES = 40 };
typedef struct title {
    char text[PROBLEM_TEXT_SIZE + 96]; /* its lines end with 0 */
    const char *lines[MOST_TITLE_LINES];
    int n;
} title;

/* Cuts t->text at spaces into lines of at most `most` characters, where it can. */
static void wrap(title *t, size_t most)
{
    char *at = t->text;
    while (*at && t->n < MOST_TITLE_LINES) {
        char *cut = NULL;
        t->lines[t->n++] = at;
        for (char *c = at; *c && (!cut || (size_t)(c - at) <= most); c++)
            if (*c == '\n') {
                cut = c;
                break;
            } else if (*c == ' ') {
                cut = c;
            }
        if (strlen(at) <= most && !strchr(at, '\n')) cut = NULL;
        if (!cut) break;
        *cut = 0;
        at = cut + 1;
    }
}

static void title_make(const options *o, const inputs *in, const side *across, const side *down, size_t most, title *t)
{
    static const char *const steps[] = {[CLATTN_SCORE_SCALED] = "scaled scores",
                                        [CLATTN_SCORE_CAPPED] = "scores after softcap",
                                        [CLATTN_SCORE_MASKED] = "masked scores",
                                        [CLATTN_SCORE_PROBS] = "probs, colored by square root"};
    char problem[PROBLEM_TEXT_SIZE];
    inputs_to_text(in, problem);
    t->n = 0;
    size_t n = (size_t)snprintf(t->text, sizeof t->text, "%s\nbatch %" PRId64 ", head %" PRId64 ": %s", problem,
                                o->map_batch, o->map_head, steps[o->map_step]);
    if (across->of > 1 || down->of > 1)
        snprintf(t->text + n, sizeof t->text - n, ", largest of %" PRId64 " x %" PRId64, down->of, across->of);
    wrap(t, most);
}

static int draw(const options *o, const inputs *in, const float *cells, const side *across, const side *down,
                picture *p)
{
    const int64_t count = (int64_t)across->cells * down->cells;
    const range r = range_of(cells, count, (clattn_score_step)o->map_step);
    char text[24];
    title t;
    bool any_hidden = false, any_nan = false;
    for (int64_t i = 0; i < count; i++) {
        any_hidden |= cells[i] == -INFINITY;
        any_nan |= isnan(cells[i]);
    }
    frame f = {.width = across->cells * across->zoom, .height = down->cells * down->zoom};
    const int legend_right = LEGEND_WIDTH + TICK + GAP + picture_text_width("-1.23e+04");
    const int swatches = (any_hidden + any_nan) * (LEGEND_WIDTH + 2 * GAP);
    const int legend_height = f.height - swatches < LEGEND_LEAST_HEIGHT ? LEGEND_LEAST_HEIGHT : f.height - swatches;
    f.x = MARGIN + TEXT_HEIGHT + 2 * GAP + picture_text_width(number_text(down->n, text)) + GAP + TICK;
    const int right = f.x + f.width + 3 * GAP + legend_right;
    title_make(o, in, across, down, (size_t)((right - f.x) / TEXT_STEP), &t);
    f.y = MARGIN + t.n * TEXT_LINE + 2 * GAP;
    const int below_map = f.y + f.height + TICK + 2 * GAP + 2 * TEXT_LINE;
    const int below_legend = f.y + legend_height + swatches;
    if (picture_make(p, right + MARGIN, (below_map > below_legend ? below_map : below_legend) + MARGIN))
        return CLI_FAILED;
    for (int i = 0; i < t.n; i++) picture_text(p, f.x, MARGIN + i * TEXT_LINE, TEXT_ACROSS, ink, t.lines[i]);
    draw_cells(p, &f, cells, across, down, &r);
    draw_border(p, f.x, f.y, f.width, f.height);
    draw_axes(p, &f, across, down);
    draw_legend(p, f.x + f.width + 3 * GAP, f.y, legend_height, &r, any_hidden, any_nan);
    return CLI_OK;
}

int map_check(const options *o, const inputs *in)
{
    const clattn_problem *p = &in->problem;
    if (!picture_can_write())
        return cli_fail(CLI_USAGE, "--map %s: this program was built without libpng, which writes it", o->map);
    if (o->map_batch >= p->batch)
        return cli_fail(CLI_USAGE, "--map-batch %" PRId64 ": the batch is %" PRId64, o->map_batch, p->batch);
    if (o->map_head >= p->n_heads_q)
        return cli_fail(CLI_USAGE, "--map-head %" PRId64 ": there are %" PRId64 " heads", o->map_head, p->n_heads_q);
    const entry e = inputs_entry(in, o->map_batch);
    if (!e.n_q || !e.n_kv)
        return cli_fail(CLI_USAGE, "--map %s: batch entry %" PRId64 " has %" PRId64 " queries and %" PRId64 " keys",
                        o->map, o->map_batch, e.n_q, e.n_kv);
    return CLI_OK;
}

/* f32 [n_q, n_kv] of one step. NULL: it has said why. */
static float *scores_make(const options *o, const inputs *in, clattn_score_step step)
{
    const entry e = inputs_entry(in, o->map_batch);
    int64_t count;
    clattn_forward_args args;
    inputs_fill_args(in, &args);
    if (__builtin_mul_overflow(e.n_q, e.n_kv, &count)) count = INT64_MAX;
    float *scores = cli_alloc("the map's scores", count, sizeof *scores);
    if (!scores || !clattn_scores(&in->problem, &args, step, o->map_batch, o->map_head, scores)) return scores;
    cli_fail_library("--map", o->map);
    free(scores);
    return NULL;
}

int map_write(const options *o, const inputs *in, output *out)
{
    const clattn_score_step step = (clattn_score_step)o->map_step;
    const entry e = inputs_entry(in, o->map_batch);
    side across = side_make(e.n_kv, e.n_q), down = side_make(e.n_q, e.n_kv);
    picture p = {0};
    float *values = scores_make(o, in, step), *masked = NULL, *cells = NULL;
    /* A prob may be 0 where a key is seen: only scores tell which are hidden. */
    if (values && step == CLATTN_SCORE_PROBS) masked = scores_make(o, in, CLATTN_SCORE_MASKED);
    enlarge(&across, &down);
    if (values && (masked || step != CLATTN_SCORE_PROBS))
        cells = pool(values, masked ? masked : values, &across, &down);
    free(values);
    free(masked);
    int code = cells ? draw(o, in, cells, &across, &down, &p) : CLI_FAILED;
    if (!code) code = output_finish(out, picture_write(&p, out->file));
    free(cells);
    picture_free(&p);
    return code;
}
