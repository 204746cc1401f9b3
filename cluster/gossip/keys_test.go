package gossip

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"eboot"
)

// The three steps of a change of keys, each on one server after the other: nobody loses
// sight of anybody, and after the last step the old key opens nothing.
func TestKeysChangeWhileServersLive(t *testing.T) {
	before, after := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	keyed := func(o *Options) { o.Keys = [][]byte{before} }
	a := start(t, "a", "127.0.0.1:0", keyed)
	b := start(t, "b", "127.0.0.2:0", seeds(a), keyed)
	c := start(t, "c", "127.0.0.3:0", seeds(a), keyed)
	servers := []*node{a, b, c}
	for _, n := range servers {
		n.seesAlive(t, slices.DeleteFunc([]string{"a", "b", "c"}, func(id string) bool { return id == n.id })...)
	}
	version := 100
	for _, keys := range [][][]byte{{before, after}, {after, before}, {after}} {
		for _, n := range servers {
			if err := n.SetKeys(keys); err != nil {
				t.Fatal(err)
			}
			// News goes through in both directions.
			for _, teller := range servers {
				version++
				teller.Update(func(m *Meta) { m.StateVersion = version })
				for _, hearer := range servers {
					if hearer != teller {
						hearer.sees(t, "the news of "+teller.id, func([]Member) bool { return hearer.member(teller.id).StateVersion == version })
					}
				}
			}
		}
	}
	for _, n := range servers {
		if got := n.transport.ring.GetKeys(); len(got) != 1 || !bytes.Equal(got[0], after) {
			t.Errorf("%s has %d keys", n.id, len(got))
		}
		if lines := n.log.lines("server is gone"); len(lines) > 0 {
			t.Errorf("%s lost sight of others: %q", n.id, lines)
		}
	}
	late := start(t, "d", "127.0.0.4:0", seeds(a), keyed)
	poll(t, "the refusal of the old key", func() bool { return len(a.log.lines("no installed keys could decrypt")) > 0 })
	if len(late.Members()) > 0 || a.member("d").ID != "" {
		t.Error("the old key still opens the cluster")
	}
}

func TestSetKeys(t *testing.T) {
	key := func(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }
	n := start(t, "a", "127.0.0.1:0", func(o *Options) { o.Keys = [][]byte{key(1)} })
	for _, keys := range [][][]byte{
		{key(1), key(2), key(3), key(4)}, {key(3), key(1)}, {key(5)}, {key(1), key(2), key(3)}, {key(4), key(3), key(2), key(1)}, {key(2), key(2)}, {key(2), key(9)},
	} {
		if err := n.SetKeys(keys); err != nil {
			t.Fatal(err)
		}
		got := n.transport.ring.GetKeys()
		same := func(a, b [][]byte) bool {
			return !slices.ContainsFunc(a, func(k []byte) bool {
				return !slices.ContainsFunc(b, func(o []byte) bool { return bytes.Equal(o, k) })
			})
		}
		if !bytes.Equal(got[0], keys[0]) || !same(got, keys) || !same(keys, got) {
			t.Errorf("set %x, has %x", keys, got)
		}
	}
	for name, keys := range map[string][][]byte{"none": nil, "short": {key(1), key(2)[:5]}} {
		if err := n.SetKeys(keys); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := n.transport.ring.GetKeys(); len(got) != 2 {
		t.Errorf("a refused change left %d keys", len(got))
	}
	open := start(t, "b", "127.0.0.2:0")
	if err := open.SetKeys([][]byte{key(1)}); !errors.Is(err, eboot.ErrInvalid) {
		t.Errorf("encryption cannot begin: %v", err)
	}
	if err := open.SetKeys(nil); err != nil {
		t.Errorf("no keys, as before: %v", err)
	}
}
