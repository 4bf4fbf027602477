/* Multiplies extreme and random bytes by every kernel that this processor has and compares with plain loops, exactly.
   Prints the names of those that are right; returns 1 where one is wrong. */

#include "../../smalle/native/smalle.c"

#include <stdio.h>
#include <stdlib.h>

int main(void) {
    enum { IN = 300, OUT = 40, COUNT = 7 };
    static float weight[OUT * IN], x[COUNT * IN], y[COUNT * OUT], expected[COUNT * OUT];
    for (int i = 0; i < OUT * IN; i++) weight[i] = i % BLOCK && i / IN > 3 ? rand() % 255 - 127 : i % 2 ? -127 : 127;
    for (int i = 0; i < COUNT * IN; i++) x[i] = i % BLOCK && i / IN > 1 ? rand() % 255 - 127 : i / IN ? -127 : 127;
    for (int n = 0; n < OUT; n++) /* every block of a column has a 127, so that scales are 1 */
        for (int k = 0; k < IN; k += BLOCK) weight[n * IN + k] = 127;
    for (int m = 0; m < COUNT; m++)
        for (int k = 0; k < IN; k += BLOCK) x[m * IN + k] = 127;
    for (int m = 0; m < COUNT; m++)
        for (int n = 0; n < OUT; n++)
            for (int k = 0; k < IN; k++) expected[m * OUT + n] += weight[n * IN + k] * x[m * IN + k];
    static _Alignas(64) char packed[1 << 16], scratch[1 << 16];
    smalle_pack_matrix(IN, OUT, 1, 1, weight, 0, packed);
    for (size_t n = 0; n < sizeof fastest_first / sizeof *fastest_first; n++) {
        if (!has(fastest_first[n])) continue;
        smalle_choose(fastest_first[n]->name);
        for (int count = 1; count <= COUNT; count++) {
            memset(y, 0, sizeof y);
            smalle_multiply(packed, x, count, y, scratch);
            if (memcmp(y, expected, sizeof(float) * count * OUT)) return printf("%s is wrong\n", chosen->name), 1;
        }
        puts(chosen->name);
    }
    return 0;
}
