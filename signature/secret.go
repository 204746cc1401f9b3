package signature

import (
	"bytes"
	"crypto/ed25519"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/crypto/blake2b"
	"golang.org/x/crypto/scrypt"

	"eboot"
)

// A secret key file, its second line decoded:
//
//	algorithm  2 bytes  "Ed"
//	kdf        2 bytes  "Sc": scrypt; 0 0: not encrypted
//	checksum   2 bytes  "B2": BLAKE2b-256
//	salt      32 bytes
//	opslimit   uint64   little-endian; the cost of scrypt, as libsodium counts it
//	memlimit   uint64   little-endian, bytes
//	key      104 bytes  key id, Ed25519 key, checksum of algorithm, id and key; XORed with
//	                    scrypt's output when encrypted; without a checksum when not
const (
	secretKeySize = 2 + 2 + 2 + saltSize + 8 + 8 + sealedSize
	saltSize      = 32
	sealedSize    = 8 + ed25519.PrivateKeySize + blake2b.Size256
	sealedAt      = secretKeySize - sealedSize

	kdfScrypt      = "Sc"
	kdfNone        = "\x00\x00"
	checksumBlake2 = "B2"
	remarkOpen     = "minisign secret key"
	remarkLocked   = "minisign encrypted secret key"
)

// What scrypt may cost. Written keys take 128 MiB and less than a second; minisign's own take
// 1 GiB, which is the most that is read.
const (
	writtenOps   = 1 << 22
	writtenMem   = 128 << 20
	mostOps      = 1 << 26
	mostMem      = 1 << 30
	leastMem     = 1 << 20
	leastScrypts = 32768 // of libsodium: a lower opslimit counts as this
	scryptBlock  = 8     // the parameter r
)

// ParseSecretKey reads a secret key file of minisign. passphrase is called when the key is
// encrypted; its error is returned. eboot.ErrInvalid: it is no secret key;
// eboot.ErrDenied: the passphrase is wrong.
func ParseSecretKey(text []byte, passphrase func() ([]byte, error)) (SecretKey, error) {
	const what = "secret key"
	lines, err := textLines(what, text, 2)
	if err != nil {
		return SecretKey{}, err
	}
	data, err := decodeLine(what, lines[1], secretKeySize)
	if err != nil {
		return SecretKey{}, err
	}
	if string(data[:2]) != algorithmEd25519 || string(data[4:6]) != checksumBlake2 {
		return SecretKey{}, fmt.Errorf("%s: is not of minisign's kind (%s, %s): %w", what, algorithmEd25519, checksumBlake2, eboot.ErrInvalid)
	}
	key := data[sealedAt:]
	switch string(data[2:4]) {
	case kdfNone:
	case kdfScrypt:
		words, err := passphrase()
		if err != nil {
			return SecretKey{}, err
		}
		cost := data[6+saltSize:]
		stream, err := stretch(words, data[6:6+saltSize], binary.LittleEndian.Uint64(cost), binary.LittleEndian.Uint64(cost[8:]))
		if err != nil {
			return SecretKey{}, fmt.Errorf("%s: %w", what, err)
		}
		subtle.XORBytes(key, key, stream)
		if sum := checksum(key); subtle.ConstantTimeCompare(sum[:], key[sealedSize-len(sum):]) != 1 {
			return SecretKey{}, fmt.Errorf("%s: the passphrase is wrong: %w", what, eboot.ErrDenied)
		}
	default:
		return SecretKey{}, fmt.Errorf("%s: is encrypted in a way that is not known here: %w", what, eboot.ErrInvalid)
	}
	k := SecretKey{id: eboot.KeyID(key[:8]), key: ed25519.PrivateKey(key[8 : 8+ed25519.PrivateKeySize])}
	if again := ed25519.NewKeyFromSeed(k.key.Seed()); !bytes.Equal(again, k.key) {
		return SecretKey{}, fmt.Errorf("%s: its public half is another key's: %w", what, eboot.ErrInvalid)
	}
	return k, nil
}

// Encode returns the file that ParseSecretKey and minisign read, encrypted with a
// passphrase unless that is empty. random is crypto/rand.Reader outside of tests.
func (k SecretKey) Encode(random io.Reader, passphrase []byte) ([]byte, error) {
	data := make([]byte, 0, secretKeySize)
	data = append(data, algorithmEd25519...)
	if len(passphrase) == 0 {
		data = append(data, kdfNone+checksumBlake2...)
		data = append(data, make([]byte, saltSize+16)...)
		data = append(append(data, k.id[:]...), k.key...)
		return textOf(remarkOpen, append(data, make([]byte, blake2b.Size256)...)), nil
	}
	data = append(data, kdfScrypt+checksumBlake2...)
	salt := make([]byte, saltSize)
	if _, err := io.ReadFull(random, salt); err != nil {
		return nil, fmt.Errorf("encrypt a key: %w", err)
	}
	stream, err := stretch(passphrase, salt, writtenOps, writtenMem)
	if err != nil {
		return nil, fmt.Errorf("encrypt a key: %w", err)
	}
	data = append(data, salt...)
	data = binary.LittleEndian.AppendUint64(data, writtenOps)
	data = binary.LittleEndian.AppendUint64(data, writtenMem)
	data = append(append(data, k.id[:]...), k.key...)
	sum := checksum(data[sealedAt:])
	data = append(data, sum[:]...)
	subtle.XORBytes(data[sealedAt:], data[sealedAt:], stream)
	return textOf(remarkLocked, data), nil
}

// checksum is of the algorithm, and the id and the key at the beginning of key.
func checksum(key []byte) [blake2b.Size256]byte {
	return blake2b.Sum256(append([]byte(algorithmEd25519), key[:8+ed25519.PrivateKeySize]...))
}

// stretch makes of a passphrase what the key is XORed with. A file must not have this
// program take more memory and time than minisign's own keys do: eboot.ErrTooLarge.
func stretch(passphrase, salt []byte, ops, mem uint64) ([]byte, error) {
	if ops > mostOps || mem > mostMem || mem < leastMem {
		return nil, fmt.Errorf("its encryption costs %d operations and %d bytes, which is out of bounds: %w", ops, mem, eboot.ErrTooLarge)
	}
	n, p := scryptCost(ops, mem)
	stream, err := scrypt.Key(passphrase, salt, n, scryptBlock, p, sealedSize)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, eboot.ErrInvalid)
	}
	return stream, nil
}

// scryptCost is how libsodium makes parameters of its limits (pickparams of
// crypto_pwhash_scryptsalsa208sha256).
func scryptCost(ops, mem uint64) (n, p int) {
	ops = max(ops, leastScrypts)
	most := mem / (scryptBlock * 128)
	if ops < mem/32 {
		most = ops / (scryptBlock * 4)
	}
	log := 1
	for log < 63 && uint64(1)<<log <= most/2 {
		log++
	}
	p = 1
	if ops >= mem/32 {
		p = int(min(ops/4/(uint64(1)<<log), 0x3fffffff) / scryptBlock)
	}
	return 1 << log, p
}
