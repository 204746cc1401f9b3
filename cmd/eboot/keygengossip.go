package main

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"eboot"
	"eboot/config"
	"eboot/internal/fsutil"
)

// madeGossipKey is what `eboot keygen gossip` says.
type madeGossipKey struct {
	File string `json:"file"`
	Keys int    `json:"keys"`           // in it now
	Step int    `json:"step,omitempty"` // of a change of keys that was done, 1 to 3
}

func (c *command) keygenGossip() *cobra.Command {
	var rotate bool
	cmd := &cobra.Command{
		Use: "gossip FILE", Short: "Make the key that gossip is encrypted with, or change it in three steps", Args: arguments(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			made := madeGossipKey{File: args[0], Keys: 1}
			if !rotate {
				if err := writeNew(made.File, 0o600, gossipFile([]string{newGossipKey()}, 0)); err != nil {
					return err
				}
				return c.print(made, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "%s goes to every server (gossip.key_file); keep it secret\n", made.File)
					return err
				})
			}
			content, err := os.ReadFile(made.File)
			if err != nil {
				return err
			}
			next, keys, step, err := rotateGossip(content, newGossipKey())
			if err != nil {
				return fmt.Errorf("%s: %w", made.File, err)
			}
			if err := fsutil.WriteAtomic(made.File, 0o600, func(w io.Writer) error { _, err := w.Write(next); return err }); err != nil {
				return err
			}
			made.Keys, made.Step = keys, step
			return c.print(made, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "step %d of %d: %s\n", step, len(gossipSteps), gossipSteps[step-1])
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&rotate, "rotate", false, "do the next step of a change of keys in the file, which is there")
	return cmd
}

// gossipSteps say what was done and what comes next.
var gossipSteps = [...]string{
	"there is a second key, to receive with; copy the file to every server, wait until the log of each says that its gossip keys have changed, then --rotate again",
	"the new key is now used to send; copy the file to every server, wait likewise, then --rotate again",
	"the old key is gone; copy the file to every server",
}

const gossipStep = "# rotation: step "

func newGossipKey() string {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // it never fails
	return base64.StdEncoding.EncodeToString(key)
}

// gossipFile is the file with these keys, after a step of a change; 0: none is under way.
func gossipFile(keys []string, step int) []byte {
	var b strings.Builder
	b.WriteString("# Keys of eboot's gossip. The first is used to send, all to receive. Keep this secret.\n")
	if step > 0 {
		fmt.Fprintf(&b, "%s%d of 3 is done\n", gossipStep, step)
	}
	for _, k := range keys {
		b.WriteString(k + "\n")
	}
	return []byte(b.String())
}

// rotateGossip does the next step of a change of keys. Errors wrap eboot.ErrInvalid.
func rotateGossip(content []byte, fresh string) (next []byte, keys, step int, err error) {
	parsed, err := config.ParseGossipKeys(content)
	if err != nil {
		return nil, 0, 0, err
	}
	texts := make([]string, len(parsed))
	for i, k := range parsed {
		texts[i] = base64.StdEncoding.EncodeToString(k)
	}
	switch {
	case len(texts) == 1:
		next, keys, step = gossipFile([]string{texts[0], fresh}, 1), 2, 1
	case len(texts) == 2 && bytes.Contains(content, []byte(gossipStep+"1 ")):
		next, keys, step = gossipFile([]string{texts[1], texts[0]}, 2), 2, 2
	case len(texts) == 2 && bytes.Contains(content, []byte(gossipStep+"2 ")):
		next, keys, step = gossipFile(texts[:1], 0), 1, 3
	default:
		return nil, 0, 0, fmt.Errorf("holds %d keys and does not say which step was done; leave the one that the servers send with, the first, or go on by hand: %w", len(texts), eboot.ErrInvalid)
	}
	return next, keys, step, nil
}
