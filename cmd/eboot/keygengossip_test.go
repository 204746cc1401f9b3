package main

import (
	"bytes"
	"testing"

	"eboot/config"
)

func TestRotateGossip(t *testing.T) {
	old, fresh := newGossipKey(), newGossipKey()
	if old == fresh {
		t.Fatal("two keys are equal")
	}
	content := []byte(old)
	key := func(text string) []byte {
		keys, err := config.ParseGossipKeys([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return keys[0]
	}
	for i, want := range [][][]byte{{key(old), key(fresh)}, {key(fresh), key(old)}, {key(fresh)}} {
		next, n, step, err := rotateGossip(content, fresh)
		if err != nil || step != i+1 || n != len(want) {
			t.Fatal(n, step, err)
		}
		keys, err := config.ParseGossipKeys(next)
		if err != nil || len(keys) != len(want) {
			t.Fatalf("step %d: %d keys, %v", step, len(keys), err)
		}
		for j := range keys {
			if !bytes.Equal(keys[j], want[j]) {
				t.Errorf("step %d: key %d is another", step, j+1)
			}
		}
		content = next
	}
	if _, _, step, err := rotateGossip(content, newGossipKey()); err != nil || step != 1 {
		t.Errorf("the next change: step %d, %v", step, err)
	}
}
