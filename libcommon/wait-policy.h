/* wait-policy.h - how long a thread without work watches for some before it sleeps. */
#ifndef WAIT_POLICY_H
#define WAIT_POLICY_H

/* First thing of a program, argv as main got it.  GNU's OpenMP lets threads that wait spin for milliseconds, which on a
 * machine of few cores they take from the other programs of a pipe.  Its settings are read from the environment before main
 * and at no other time: unless the user has set them (OMP_WAIT_POLICY, GOMP_SPINCOUNT), the program sets them and starts
 * itself anew, a matter of two milliseconds.  Returns if there is nothing to do, and without a word where that fails. */
void wait_policy_set(char **argv);

#endif
