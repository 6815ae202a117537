# A guest in one boot sector that writes to its disk for ever, in real mode by the BIOS.
#
# Write n = 1, 2, 3, … fills sector n mod 2048 of the first hard disk with n (128 words of 32 bits); after every 64th a
# dot goes to COM1, and an E when the disk refuses. So a sector tells when it was written, and a whole disk which write
# was the last, and whether one before it is missing.
.code16
.globl _start
_start:
    cli
    cld
    xor %ax,%ax
    mov %ax,%ds
    mov %ax,%es
    mov %ax,%ss
    mov $0x7000,%sp
    sti
    movl $0,0x600
again:
    incl 0x600
    mov 0x600,%eax
    mov $0x8000,%di
    mov $128,%cx
    rep stosl
    and $2047,%eax
    mov %eax,packet+8
    mov $packet,%si
    mov $0x4300,%ax               # extended write
    mov $0x80,%dl
    int $0x13
    jc broken
    testl $63,0x600
    jnz again
    mov $'.',%al
    jmp say
broken:
    mov $'E',%al
say:
    mov $0x3f8,%dx
    out %al,%dx
    jmp again
packet:
    .byte 16, 0
    .word 1                       # sectors
    .word 0x8000, 0               # offset, segment
    .quad 0                       # LBA
.org 510
    .word 0xaa55
