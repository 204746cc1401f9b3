package fsm

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"eboot"
)

var update = flag.Bool("update", false, "write the golden files anew")

func mustEncode(t testing.TB, c Command) []byte {
	t.Helper()
	entry, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return entry
}

// log feeds commands to a machine at rising indexes.
type log struct {
	t       testing.TB
	machine *Machine
	index   uint64
	serial  int
	entries [][]byte
}

func newLog(t testing.TB) *log { return &log{t: t, machine: New(nil)} }

func (l *log) header() Header {
	l.serial++
	return Header{RequestID: fmt.Sprintf("request-%d", l.serial), At: 1_700_000_000_000 + int64(l.serial)*1000}
}

func (l *log) apply(c Command) *Result {
	l.t.Helper()
	return l.applyEntry(mustEncode(l.t, c))
}

func (l *log) applyEntry(entry []byte) *Result {
	l.t.Helper()
	l.index++
	l.entries = append(l.entries, entry)
	return l.machine.Apply(l.index, entry).(*Result)
}

func (l *log) must(c Command) *Result {
	l.t.Helper()
	r := l.apply(c)
	if r.Err != nil {
		l.t.Fatalf("%T: %v", c, r.Err)
	}
	return r
}

func entryOf(prefix, channel string, labels map[string]string) eboot.WhitelistEntry {
	return eboot.WhitelistEntry{Prefix: netip.MustParsePrefix(prefix), Channel: channel, Labels: labels}
}

func bundleOf(name, version, erts, content string) eboot.Bundle {
	return eboot.Bundle{
		Name: name, Version: version, ERTS: erts, Manifest: eboot.DigestOf([]byte(content)), Times: eboot.DigestOf([]byte("times of " + content)),
		BootScript: "bin/start.boot", Files: 12, Bytes: 3456, Holders: []string{"server-a"},
	}
}

// signaturesOf is one signature of each key; right ones are package signature's matter.
func signaturesOf(keys ...byte) []eboot.Signature {
	var signatures []eboot.Signature
	for _, key := range keys {
		signatures = append(signatures, eboot.Signature{
			KeyID: eboot.KeyID{7: key}, Signature: bytes.Repeat([]byte{key}, 64), Comment: fmt.Sprintf("by	key %d", key), Sealed: bytes.Repeat([]byte{^key}, 64),
		})
	}
	return signatures
}

func signedBy(b eboot.Bundle, keys ...byte) eboot.Bundle {
	b.Signatures = signaturesOf(keys...)
	return b
}

// operator is somebody who asks.
var operator = eboot.Actor{Name: "alice", Via: eboot.ViaCertificate, From: "10.0.0.7"}

// by is header with somebody who asks.
func (l *log) by() Header {
	h := l.header()
	h.By = operator
	return h
}

// tokenOf is token n, which expires at a time in milliseconds; 0: never.
func tokenOf(n byte, name string, role eboot.Role, expires int64) eboot.Token {
	id, digest, err := eboot.ParseToken(eboot.FormatToken([8]byte{7: n}, [32]byte{31: n}))
	if err != nil {
		panic(err)
	}
	t := eboot.Token{ID: id, Name: name, Role: role, Digest: digest}
	if expires != 0 {
		t.ExpiresAt = time.UnixMilli(expires).UTC()
	}
	return t
}

func specOf(stages ...string) eboot.RolloutSpec {
	s := eboot.RolloutSpec{MaxFailures: 2, DeadlineMS: 60_000, MinHealthyMS: 30_000}
	for _, text := range stages {
		stage, err := eboot.ParseStage(text)
		if err != nil {
			panic(err)
		}
		s.Stages = append(s.Stages, stage)
	}
	return s
}

func refOf(s string) eboot.Ref {
	r, err := eboot.ParseRef(s)
	if err != nil {
		panic(err)
	}
	return r
}

func snapshotOf(t testing.TB, s *State) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := s.WriteTo(&b)
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(b.Len()) {
		t.Fatalf("WriteTo says %d bytes and wrote %d", n, b.Len())
	}
	return b.Bytes()
}

func reread(t testing.TB, s *State) *State {
	t.Helper()
	again, err := ReadState(bytes.NewReader(snapshotOf(t, s)))
	if err != nil {
		t.Fatal(err)
	}
	return again
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (write it with -update)", err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: the encoding changed. Servers of the released version cannot read it: make a new version instead.\ngot  %q\nwant %q", path, got, want)
	}
}

// snapshotsAfter names the golden snapshot that is taken after an example: the
// first has nothing of servers, as states before several servers were, the second
// nothing of options of channels, the third nothing of rollouts and events, the fourth
// nothing of signatures, the fifth nothing of who asked and of tokens.
var snapshotsAfter = map[string]string{
	"remove_bundle": "state.snapshot", "raise_version": "servers.snapshot", "move_configured": "options.snapshot", "pause_rollout": "rollouts.snapshot", "sign_bundle": "signatures.snapshot",
	"create_other_token": "operators.snapshot",
}

// example is one of each command.
func example() []struct {
	name    string
	command Command
} {
	h := func(n int) Header {
		return Header{RequestID: fmt.Sprintf("00000000-0000-4000-8000-%012d", n), At: 1_700_000_000_000 + int64(n)}
	}
	expect := h(3)
	generation := uint64(1)
	expect.ExpectGeneration = &generation
	by := func(n int) Header {
		h := h(n)
		h.By = operator
		return h
	}
	return []struct {
		name    string
		command Command
	}{
		{"init", Init{Header: h(1), ClusterID: "6f2c9c0e-3d0e-4f4b-9a53-0d5f3f1f9c11", Name: "prod"}},
		{"allow_slaves", AllowSlaves{Header: h(2), Entries: []eboot.WhitelistEntry{
			entryOf("10.1.0.0/16", "stable", nil), entryOf("10.1.2.3/32", "canary", map[string]string{"rack": "r1", "role": "db"}), entryOf("10.9.0.0/16", "stable", nil),
		}}},
		{"deny_slaves", DenySlaves{Header: expect, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}}},
		{"add_bundle", AddBundle{Header: h(4), Bundle: bundleOf("otp", "25.3", "13.1.5", "one"), Channel: "stable"}},
		{"add_bundle_only", AddBundle{Header: h(5), Bundle: bundleOf("otp", "26.0", "13.1.5", "two")}},
		{"set_channel", SetChannel{Header: h(6), Channel: "stable", Ref: refOf("otp@26.0"), ERTS: "13.1.5"}},
		{"remove_bundle", RemoveBundle{Header: h(7), Ref: refOf("otp@25.3")}},
		{"hold_bundle", HoldBundle{Header: h(8), Server: "server-b", Manifests: []eboot.Digest{eboot.DigestOf([]byte("two")), eboot.DigestOf([]byte("gone"))}}},
		{"drain_server", SetDrained{Header: h(9), Server: "server-a", Drained: true}},
		{"drain_other_server", SetDrained{Header: h(10), Server: "server-b", Drained: true}},
		{"undrain_server", SetDrained{Header: h(11), Server: "server-a"}},
		{"remove_server", RemoveServer{Header: h(12), Server: "server-a"}},
		{"raise_version", RaiseVersion{Header: h(13), Version: 2}},
		{"configure_channel", ConfigureChannel{Header: h(14), Channel: "stable", Options: eboot.ChannelOptions{Loader: eboot.LoaderStock, Control: eboot.ControlOn}}},
		{"configure_and_move", ConfigureChannel{Header: h(15), Channel: "canary", Options: eboot.ChannelOptions{Control: eboot.ControlOn}, Ref: refOf("otp@26.0"), ERTS: "13.1.5"}},
		{"add_later_bundle", AddBundle{Header: h(16), Bundle: bundleOf("otp", "27.0", "13.1.5", "three")}},
		{"move_configured", SetChannel{Header: h(17), Channel: "stable", Ref: refOf("otp@27.0")}},
		{"raise_to_rollouts", RaiseVersion{Header: h(18), Version: 3}},
		{"configure_live", ConfigureChannel{Header: h(19), Channel: "canary", Options: eboot.ChannelOptions{Live: eboot.LiveOn}}},
		{"protect_bundle", ProtectBundle{Header: h(20), Ref: refOf("otp@26.0"), Protected: true}},
		{"start_rollout", StartRollout{Header: h(21), ID: "5a0c1f3e-0001", Channel: "stable", Ref: refOf("otp@26.0"), Spec: specOf("canary:rack=r1", "100%")}},
		{"observe_rollout", ObserveRollout{Header: h(22), Channel: "stable", ID: "5a0c1f3e-0001", Totals: []eboot.StageTotals{{Booted: 2, Healthy: 1, Failed: 1, Failures: 2}}}},
		{"promote_rollout", SteerRollout{Header: h(23), Channel: "stable", Action: eboot.RolloutPromoteFull, Reason: "looks good"}},
		{"undo_channel", UndoChannel{Header: h(24), Channel: "stable"}},
		{"start_other_rollout", StartRollout{Header: h(25), ID: "5a0c1f3e-0002", Channel: "canary", Ref: refOf("otp@27.0"), Spec: specOf("10%", "100%")}},
		{"pause_rollout", SteerRollout{Header: h(26), Channel: "canary", ID: "5a0c1f3e-0002", Action: eboot.RolloutPause}},
		{"raise_to_security", RaiseVersion{Header: h(27), Version: 4}},
		{"add_signed_bundle", AddBundle{Header: h(28), Bundle: signedBy(bundleOf("otp", "28.0", "13.1.5", "four"), 9, 1)}},
		{"sign_bundle", SignBundle{Header: h(29), Ref: refOf("otp@28.0"), ERTS: "13.1.5", Manifest: eboot.DigestOf([]byte("four")), Signatures: signaturesOf(5)}},
		{"raise_to_operators", RaiseVersion{Header: h(30), Version: 5}},
		{"allow_slaves_by", AllowSlaves{Header: by(31), Entries: []eboot.WhitelistEntry{entryOf("10.7.0.0/16", "stable", nil)}}},
		{"create_token", CreateToken{Header: by(32), Token: tokenOf(1, "ci", eboot.RolePublisher, 1_800_000_000_000)}},
		{"note", Note{Header: by(33), Kind: eboot.EventLeaderTransferred, Text: "the leader was told to let server-b lead", Server: "server-b"}},
		{"revoke_token", RevokeToken{Header: by(34), ID: tokenOf(1, "ci", "", 0).ID}},
		{"create_other_token", CreateToken{Header: by(35), Token: tokenOf(2, "ops", eboot.RoleAdmin, 0)}},
		{"raise_to_coverage", RaiseVersion{Header: h(36), Version: 6}},
		{"revoke_token_by_name", RevokeToken{Header: by(37), Name: "ops"}},
	}
}

// mustEncodeChange returns the JSON of a command without its envelope.
func mustEncodeChange(t testing.TB, c Command) []byte {
	t.Helper()
	change, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return change
}
