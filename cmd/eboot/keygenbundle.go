package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"eboot"
	"eboot/internal/fsutil"
	"eboot/signature"
)

// madeKey is what `eboot keygen bundle` says.
type madeKey struct {
	KeyID     eboot.KeyID `json:"key_id"`
	Secret    string      `json:"secret_key"` // paths
	Public    string      `json:"public_key"`
	Encrypted bool        `json:"encrypted"`
}

func (c *command) keygenBundle() *cobra.Command {
	var out, passphraseFile string
	var open bool
	cmd := &cobra.Command{
		Use: "bundle NAME", Short: "Make a key that signs bundles: NAME.key and NAME.pub, as minisign has them", Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := eboot.CheckName("key name", args[0]); err != nil {
				return err
			}
			made := madeKey{Secret: filepath.Join(out, args[0]+".key"), Public: filepath.Join(out, args[0]+".pub"), Encrypted: !open}
			for _, path := range []string{made.Secret, made.Public} {
				if _, err := os.Lstat(path); err == nil {
					return fmt.Errorf("%s: exists; remove it or choose another name: %w", path, eboot.ErrConflict)
				}
			}
			var words []byte
			if !open {
				var err error
				if words, err = c.newPassphrase(cmd.Context(), passphraseFile); err != nil {
					return err
				}
			}
			key, err := signature.Generate(rand.Reader)
			if err != nil {
				return err
			}
			text, err := key.Encode(rand.Reader, words)
			if err != nil {
				return err
			}
			if err := writeNew(made.Secret, 0o600, text); err != nil {
				return err
			}
			public := key.Public()
			made.KeyID = public.ID
			if err := writeNew(made.Public, 0o644, public.Encode(fmt.Sprintf("%s: minisign public key %s", args[0], public.ID))); err != nil {
				return err
			}
			return c.print(made, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "key %s: %s signs bundles (keep it secret), %s goes to the servers (trust.keys)\n", made.KeyID, made.Secret, made.Public)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&out, "out", ".", "directory for the two files")
	cmd.Flags().StringVar(&passphraseFile, "passphrase-file", "", "file whose first line encrypts the secret key (default: asked for)")
	cmd.Flags().BoolVar(&open, "no-passphrase", false, "leave the secret key unencrypted")
	cmd.MarkFlagsMutuallyExclusive("passphrase-file", "no-passphrase")
	return cmd
}

// writeNew writes a file that must not be there yet. eboot.ErrConflict: it is.
func writeNew(path string, mode os.FileMode, data []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s: exists already: %w", path, eboot.ErrConflict)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return fsutil.SyncDir(filepath.Dir(path))
}

// newPassphrase returns the first line of a file, or asks twice.
func (c *command) newPassphrase(ctx context.Context, file string) ([]byte, error) {
	words, err := c.passphrase(ctx, file, "passphrase for the new key: ")
	if err != nil || file != "" {
		return words, err
	}
	again, err := c.passphrase(ctx, file, "once more: ")
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(words, again) {
		return nil, fmt.Errorf("passphrase: the two differ: %w", eboot.ErrInvalid)
	}
	return words, nil
}

// maxPassphrase bounds what is read of a file, in bytes.
const maxPassphrase = 1 << 10

// passphrase returns the first line of a file, or asks a person who sees prompt.
func (c *command) passphrase(ctx context.Context, file, prompt string) ([]byte, error) {
	var line string
	switch {
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(io.LimitReader(f, maxPassphrase))
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		line = string(data)
	case !term.IsTerminal(int(c.in.Fd())):
		return nil, fmt.Errorf("passphrase: nobody to ask; say --passphrase-file FILE, or --no-passphrase where a key is made: %w", eboot.ErrInvalid)
	default:
		var err error
		if line, err = c.ask(ctx, prompt); err != nil {
			return nil, err
		}
	}
	line, _, _ = strings.Cut(line, "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return nil, fmt.Errorf("passphrase: is empty: %w", eboot.ErrInvalid)
	}
	return []byte(line), nil
}

// ask reads a line that is not shown. An interrupt ends it, and the terminal shows again
// what is typed.
func (c *command) ask(ctx context.Context, prompt string) (line string, err error) {
	fd := int(c.in.Fd())
	shown, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return "", fmt.Errorf("read passphrase: %w", err)
	}
	hidden := *shown
	hidden.Lflag &^= unix.ECHO
	hidden.Lflag |= unix.ICANON | unix.ISIG
	fmt.Fprint(c.err, prompt)
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &hidden); err != nil {
		return "", fmt.Errorf("read passphrase: %w", err)
	}
	defer func() {
		fmt.Fprintln(c.err)
		err = errors.Join(err, unix.IoctlSetTermios(fd, unix.TCSETS, shown))
	}()
	return readLine(ctx, c.in)
}
