package fsm

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"eboot"
)

func addGolden(f *testing.F, pattern string) {
	f.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil || len(paths) == 0 {
		f.Fatalf("no files %s: %v", pattern, err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
}

// A log entry is read, or halts; it never panics otherwise, and what it leads to
// can be written and read again.
func FuzzCommandDecode(f *testing.F) {
	addGolden(f, "*.command")
	whole := newLog(f)
	for _, c := range example() {
		whole.must(c.command)
	}
	f.Fuzz(func(t *testing.T, entry []byte) {
		c, print, halt := decode(entry)
		if halt != nil {
			return
		}
		for _, before := range []*State{emptyState(), New(whole.machine.State()).State()} {
			s, r := before.perform(before.index+1, c, print)
			if r.Err != nil && r.Changed {
				t.Fatalf("refused and changed: %+v", r)
			}
			if by := c.header().By; r.Changed && !by.IsZero() && s.Version() >= operatorsVersion {
				if told := s.EventsAfter(before.index); len(told) == 0 || told[0].By != by {
					t.Fatalf("%T of %s left %+v", c, by, told)
				}
			}
			reread(t, s)
		}
	})
}

// A snapshot is read or refused; what was read can be written and read again.
func FuzzRestore(f *testing.F) {
	addGolden(f, "*.snapshot")
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, candidate := range [][]byte{data, resealed(data)} {
			s, err := ReadState(bytes.NewReader(candidate))
			if err != nil {
				continue
			}
			again, err := ReadState(bytes.NewReader(snapshotOf(t, s)))
			if err != nil {
				t.Fatalf("what was read cannot be written and read: %v", err)
			}
			if again.Digest() != s.Digest() {
				t.Fatal("the digest changed")
			}
			for _, token := range s.Tokens() {
				if found, ok := s.Token(token.ID); !ok || found.Name != token.Name {
					t.Fatalf("token %s is not found", token.ID)
				}
			}
			m := New(s)
			m.Apply(s.Index()+1, mustEncode(t, SetChannel{Header: Header{RequestID: "fuzz"}, Channel: "stable", Ref: refOf("otp@26.0")}))
			for _, r := range s.Rollouts() {
				if eboot.CheckName("channel", r.Channel) != nil {
					continue
				}
				s.Target(&eboot.WhitelistEntry{Channel: r.Channel}, netip.MustParseAddr("10.1.2.3"), "13.1.5")
				m.Apply(s.Index()+2, mustEncode(t, SteerRollout{Header: Header{RequestID: "fuzz-" + r.Channel}, Channel: r.Channel, Action: eboot.RolloutPromote}))
			}
		}
	})
}

// resealed gives data the length and digest that make it pass as whole, so that
// the fuzzer reaches the body.
func resealed(data []byte) []byte {
	at := len(snapshotMagic) + 3
	if len(data) < at {
		return data
	}
	at += int(data[at-1]) + 16
	if len(data) < at+32 {
		return data
	}
	out := bytes.Clone(data)
	binary.BigEndian.PutUint64(out[at-8:], uint64(len(out)-at-32))
	digest := eboot.DigestOf(append(bytes.Clone(out[:at]), out[at+32:]...))
	copy(out[at:], digest[:])
	return out
}

// A log of any entries makes two machines equal, one of them restored from a
// snapshot in the middle, and halts both at the same entry or neither.
func FuzzApply(f *testing.F) {
	var whole []byte
	for _, c := range example() {
		entry, err := c.command.Encode()
		if err != nil {
			f.Fatal(err)
		}
		whole = append(binary.BigEndian.AppendUint16(whole, uint16(len(entry))), entry...)
	}
	f.Add(whole, uint8(3))
	recorded, err := os.ReadFile("testdata/recorded.log") // of a server to which a release was published, and that booted slaves
	if err != nil {
		f.Fatal(err)
	}
	f.Add(recorded, uint8(5))
	f.Fuzz(func(t *testing.T, data []byte, middle uint8) {
		a, b := New(nil), New(nil)
		for index := uint64(1); len(data) >= 2; index++ {
			n := min(int(binary.BigEndian.Uint16(data)), len(data)-2)
			entry := data[2 : 2+n]
			data = data[2+n:]
			if halted, also := applies(t, a, index, entry), applies(t, b, index, entry); halted != also {
				t.Fatalf("entry %d halts one machine only", index)
			} else if halted {
				break
			}
			if index == uint64(middle) {
				if err := b.Restore(bytes.NewReader(snapshotOf(t, b.State()))); err != nil {
					t.Fatal(err)
				}
			}
		}
		if a.State().Digest() != b.State().Digest() {
			t.Fatal("digests differ")
		}
	})
}

func applies(t *testing.T, m *Machine, index uint64, entry []byte) (halted bool) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(*HaltError); !ok {
				t.Fatalf("panic: %v", p)
			}
			halted = true
		}
	}()
	if r := m.Apply(index, entry).(*Result); r.Generation != m.State().Generation() && !r.Replayed {
		t.Fatalf("answer %+v at generation %d", r, m.State().Generation())
	}
	return false
}
