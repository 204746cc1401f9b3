// Package testutil holds what the tests and benchmarks of eboot share: the real
// parts of an Erlang installation, and an EBOOT client that owes nothing to the
// server's own code. Only tests import it.
//
// Erlang is the installation found by RequireErl. A Slave is an unmodified
// `erl -loader inet` process whose root directory holds an emulator and nothing
// else, so that whatever it runs has come over the wire. A BootServer is OTP's own
// erl_boot_server: whole, in a network namespace of its own (it binds
// 0.0.0.0:4368 and would collide with everything else), or its file service alone,
// which needs neither root nor the port. A FileClient sends any frame; terms are
// encoded and decoded here, apart from eboot/bootproto/etf, so that an error there cannot
// hide itself. A Recorder stands between slaves and a server, writes down the requests and
// can cut the line at a chosen request; a Recording is played back without delay. A Delay is the
// way to a distant server, which can be cut off without a word. A Session is the loader's side of the wire
// extension without a node, small enough to have a thousand.
//
// EBOOT_TEST_ERL_ROOT names the directory of another system, as scripts/otp makes them: Erlang
// is then that system's, and its nodes run there by chroot.
//
// Everything that is started is bound to the test: it ends, with its whole process
// group, when the test does. Goroutines are waited for in the same place.
package testutil
